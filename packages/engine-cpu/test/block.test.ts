import { allocate, type DType, DisposedError } from "@heed/tensor";
import { Block, TENSOR } from "@heed/tensor/native";
import { describe, expect, test } from "bun:test";
import { portable } from "../src/index.ts";

const { fields } = TENSOR;
function written(write: (block: Block) => void): DataView {
  const memory = new ArrayBuffer(512);
  new Uint8Array(memory).fill(0xee);
  write(new Block(memory));
  return new DataView(memory);
}
describe("Block", () => {
  test.each([
    0,
    1,
    -1,
    2 ** 31 - 1,
    2 ** 31,
    -(2 ** 31),
    -(2 ** 31) - 1,
    2 ** 32,
    2 ** 47 - 64,
    2 ** 53 - 1,
    -(2 ** 53) + 1,
  ])("int64 of %p", (value) => {
    expect(written((b) => b.int64(8, value)).getBigInt64(8, true)).toBe(BigInt(value));
  });
  test("float64, int32 and the head of a block", () => {
    const view = written((b) => {
      b.begin(296, 7);
      b.float64(16, -0.1);
      b.int32(24, -5);
    });
    expect([view.getUint32(0, true), view.getInt32(4, true)]).toEqual([296, 7]);
    expect(view.getFloat64(16, true)).toBe(-0.1);
    expect(view.getInt32(24, true)).toBe(-5);
  });
  test("a block that begins within its memory leaves what stands before it", () => {
    const memory = new ArrayBuffer(64);
    const block = new Block(memory, 48);
    block.begin(296, 7);
    block.float64(8, 0.5);
    const view = new DataView(memory);
    expect([view.getUint32(0, true), view.getUint32(48, true), view.getInt32(52, true)]).toEqual([0, 296, 7]);
    expect(view.getFloat64(56, true)).toBe(0.5);
  });
  test("a strided view: address of its first element, lengths, strides, dtype and rank", () => {
    using base = allocate(portable(), "float16", [4, 6]);
    using view = base.slice(1, 2, 5).transpose();
    const seen = written((b) => b.tensor(8, view));
    expect(seen.getBigInt64(8 + fields.data, true)).toBe(BigInt(base.storage.address + 2 * 2));
    const row = (at: number): bigint[] => [0, 8].map((i) => seen.getBigInt64(8 + at + i, true));
    expect(row(fields.shape)).toEqual([3n, 4n]);
    expect(row(fields.strides)).toEqual([1n, 6n]);
    expect([seen.getInt32(8 + fields.dtype, true), seen.getInt32(8 + fields.rank, true)]).toEqual([2, 2]);
  });
  test("dtypes have the codes of the header", async () => {
    const header = await Bun.file(new URL("../native/abi/heed_cpu.h", import.meta.url)).text();
    for (const dtype of [
      "float64",
      "float32",
      "float16",
      "bfloat16",
      "int32",
      "int64",
      "uint8",
      "bool",
    ] as DType[]) {
      using t = allocate(portable(), dtype, [1]);
      const code = new RegExp(`HEED_${dtype.toUpperCase()} = (\\d+)`).exec(header)?.[1];
      expect(written((b) => b.tensor(0, t)).getInt32(fields.dtype, true)).toBe(Number(code));
    }
  });
  test("an absent operand has no address", () => {
    const seen = written((b) => b.tensor(0, undefined));
    expect(seen.getBigInt64(fields.data, true)).toBe(0n);
    expect(seen.getInt32(fields.rank, true)).toBe(0);
  });
  test("a disposed handle and detached memory are refused", () => {
    const t = allocate(portable(), "float32", [2]);
    const alias = t.alias();
    t[Symbol.dispose]();
    expect(() => written((b) => b.tensor(0, t))).toThrow(DisposedError);
    alias.data.buffer.transfer();
    expect(() => written((b) => b.tensor(0, alias))).toThrow(DisposedError);
    alias[Symbol.dispose]();
  });
});
