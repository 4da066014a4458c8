import { describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findVectors, loadSdpaVectors, parseSafetensors, toFloat64 } from "../src/index.ts";

/** A safetensors file from a header and data; the header is padded by one space to move the data off alignment. */
function file(header: unknown, data: Uint8Array): Uint8Array {
  const json = new TextEncoder().encode(`${JSON.stringify(header)} `);
  const bytes = new Uint8Array(8 + json.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(data, 8 + json.length);
  return bytes;
}

const one = (dtype: string, shape: readonly number[], data: ArrayBufferView): Uint8Array =>
  file(
    { __metadata__: { format: "pt" }, x: { dtype, shape, data_offsets: [0, data.byteLength] } },
    new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength),
  );

describe("parseSafetensors", () => {
  const cases = [
    ["F64", "float64", Float64Array.of(1.5, -2)],
    ["F32", "float32", Float32Array.of(1.5, -2)],
    ["F16", "float16", Float16Array.of(1.5, -2)],
    ["BF16", "bfloat16", Uint16Array.of(0x3fc0, 0xc000)],
    ["I64", "int64", BigInt64Array.of(3n, -2n)],
    ["I32", "int32", Int32Array.of(3, -2)],
    ["U8", "uint8", Uint8Array.of(3, 200)],
    ["BOOL", "bool", Uint8Array.of(1, 0)],
  ] as const;
  for (const [code, dtype, data] of cases) {
    test(`reads ${code} from unaligned data`, () => {
      const tensor = parseSafetensors(one(code, [2, 1], data)).get("x")!;
      expect(tensor).toEqual({ dtype, shape: [2, 1], data } as typeof tensor);
      const second = { uint8: 200, bool: 0 }[dtype as string] ?? -2;
      expect(toFloat64(tensor)[1]).toBe(second);
    });
  }

  test("reads scalars and empty tensors", () => {
    expect(toFloat64(parseSafetensors(one("F32", [], Float32Array.of(4))).get("x")!)).toEqual(
      Float64Array.of(4),
    );
    expect(parseSafetensors(one("F32", [0, 3], new Float32Array(0))).get("x")!.data.length).toBe(0);
  });

  test("refuses unknown dtypes, wrong sizes, cut files and bad headers", () => {
    const four = Float32Array.of(1, 2, 3, 4);
    expect(() => parseSafetensors(one("F8_E4M3", [4], four))).toThrow(/unknown dtype F8_E4M3/);
    expect(() => parseSafetensors(one("F32", [5], four))).toThrow(/F32\[5\] does not fit bytes 0..16/);
    expect(() => parseSafetensors(one("F32", [4], four).subarray(0, -1))).toThrow(/does not fit/);
    expect(() => parseSafetensors(new Uint8Array(4))).toThrow(/file of 4 bytes/);
    expect(() => parseSafetensors(Uint8Array.of(255, 0, 0, 0, 0, 0, 0, 0, 1))).toThrow(/header of 255 bytes/);
    expect(() => parseSafetensors(Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0, 123))).toThrow(/not JSON/);
    const none = new Uint8Array(0);
    expect(() => parseSafetensors(file(null, none))).toThrow(/header is not an object/);
    expect(() => parseSafetensors(file({ x: null }, none))).toThrow(/x needs a dtype, a shape and two/);
    const negative = { dtype: "F32", shape: [-1, -4], data_offsets: [0, 16] };
    expect(() => parseSafetensors(file({ x: negative }, new Uint8Array(16)))).toThrow(/x needs a dtype/);
    const inherited = { dtype: "toString", shape: [], data_offsets: [0, 0] };
    expect(() => parseSafetensors(file({ x: inherited }, none))).toThrow(/unknown dtype toString/);
  });
});

describe("findVectors", () => {
  test("finds the folder beside a checkout, from any depth, and nothing elsewhere", () => {
    const root = mkdtempSync(join(tmpdir(), "heed-testkit-"));
    try {
      const checkout = join(root, "checkout", "packages", "testkit");
      mkdirSync(checkout, { recursive: true });
      expect(findVectors(checkout)).toBeUndefined();
      const folder = join(root, "shared", "conformance");
      mkdirSync(folder, { recursive: true });
      expect(findVectors(checkout)).toBe(folder);

      writeFileSync(
        join(folder, "set.json"),
        JSON.stringify([{ name: "a", tensors: { q: "x" }, params: {} }]),
      );
      writeFileSync(join(folder, "set.safetensors"), one("F32", [2], Float32Array.of(1, 2)));
      const set = loadSdpaVectors(folder, "set");
      expect([...set.values(set.cases[0]!.tensors.q!)]).toEqual([1, 2]);
      expect(() => set.tensor("y")).toThrow(/set.safetensors has no tensor y/);
    } finally {
      rmSync(root, { recursive: true, force: true });
    }
  });
});
