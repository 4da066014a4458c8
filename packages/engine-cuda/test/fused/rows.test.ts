/** How the kernels over rows are launched, without a device; and where the fields of their blocks lie. */
import { describe, expect, test } from "bun:test";
import type { Tensor } from "@heed/tensor";
import { tokensEach } from "../../src/fused/kv-append.ts";
import { partRows, tokenBlocks } from "../../src/fused/norm-rope-append.ts";
import { backwardPlan, rowsOf } from "../../src/fused/rms-norm.ts";
import { unitsOfHead } from "../../src/fused/rope.ts";
import { filling, lanesOf, launchRows, ROW_STRUCTS } from "../../src/fused/rows.ts";
import { loadNative } from "../../src/native.ts";
import { emulatedMissing } from "../support.ts";

const H100 = { multiprocessors: 132, sharedPerBlock: 232_448, computeCapability: 90, level2Bytes: 50 << 20 };
const dense = (dtype: "float32" | "bfloat16", shape: readonly number[]) => ({
  dtype,
  shape,
  strides: shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1)),
});

describe.skipIf(emulatedMissing !== undefined)("argument blocks of the kernels over rows", () => {
  for (const [name, { bytes, fields }] of Object.entries(ROW_STRUCTS)) {
    test(`${name} lies as the library has it`, () => {
      const ours = [bytes, ...Object.entries(fields).map(([field, at]) => `${field}=${at}`)].join(";");
      expect(ours).toBe(loadNative("emulated").layout(name));
    });
  }
});
describe("lanes of a row", () => {
  test("are as many as its vectors of 16 bytes, up to a warp", () => {
    expect([1, 8, 9, 64, 128, 256, 1024].map((n) => lanesOf(n, "bfloat16"))).toEqual([
      1, 1, 2, 8, 16, 32, 32,
    ]);
    expect([4, 128].map((n) => lanesOf(n, "float32"))).toEqual([1, 32]);
  });
  test("are a block where a lane of a warp would have more than four vectors", () => {
    expect([1025, 4096].map((n) => lanesOf(n, "float16"))).toEqual([256, 256]);
    expect([512, 513].map((n) => lanesOf(n, "float32"))).toEqual([32, 256]);
  });
});
describe("a launch over rows", () => {
  test("has whole warps, enough of them for few rows and a block's for many", () => {
    expect(launchRows("k", 3, 16, filling(H100))).toMatchObject({ grid: [1, 1, 1], threads: 64 });
    expect(launchRows("k", 4096, 16, filling(H100))).toMatchObject({ grid: [256, 1, 1], threads: 256 });
    expect(launchRows("k", 7, 256, filling(H100))).toMatchObject({ grid: [7, 1, 1], threads: 256 });
  });
  test("leaves no row without lanes when the grid is at its bound", () => {
    expect(launchRows("k", 10 ** 7, 256, filling(H100)).grid[0]).toBe(16 * 132);
  });
});
describe("an append", () => {
  test("gives a lane four tokens of whole vectors where that fills the device", () => {
    expect(tokensEach(true, 16_384, 16, 16, 132)).toBe(4);
    expect(tokensEach(true, 16, 16, 16, 132)).toBe(1);
    expect(tokensEach(false, 16_384, 16, 16, 132)).toBe(1);
  });
});
describe("rows of an RMS norm", () => {
  test("are one axis where they lie behind one another, and keep the normalised axis last", () => {
    const x = dense("bfloat16", [2, 3, 4, 64]);
    expect(rowsOf(x, x)).toMatchObject({ rows: 24, lanes: 8, axes: { shape: [24, 64] } });
    const column = { dtype: "float32" as const, shape: [1, 1, 5, 3], strides: [0, 0, 1, 5] };
    expect(rowsOf(dense("float32", [1, 1, 5, 3]), column).axes).toEqual({
      shape: [5, 3],
      strides: [
        [3, 1],
        [1, 5],
      ],
    });
  });
  test("of a backward pass have as many rows of partial sums as groups of lanes", () => {
    const few = backwardPlan("bfloat16", rowsOf(dense("bfloat16", [1, 1, 100, 128])));
    expect(few).toMatchObject({ groups: 32, launch: { grid: [2, 1, 1], threads: 256 } });
    const many = backwardPlan("bfloat16", rowsOf(dense("bfloat16", [1, 1, 8192, 4096])));
    expect(many).toMatchObject({ groups: 264, launch: { grid: [264, 1, 1], threads: 256 } });
  });
});
describe("a head's rotation", () => {
  const units = (D: number, rotaryDim: number, pairing: "half" | "interleaved"): number =>
    unitsOfHead({ x: dense("bfloat16", [1, 1, 1, D]) as unknown as Tensor<"bfloat16">, rotaryDim, pairing });
  test("takes two vectors of pairs at once, one of interleaved pairs, then the rest", () => {
    expect([units(128, 128, "half"), units(128, 128, "interleaved")]).toEqual([8, 16]);
    expect([units(96, 64, "half"), units(96, 64, "interleaved")]).toEqual([8, 12]);
    expect([units(3, 2, "half"), units(8, 0, "half")]).toEqual([2, 1]);
  });
});
describe("blocks of a step", () => {
  test("have heads of one part, and all heads of a token where they are normalised together", () => {
    const q = partRows(32, 128, 128, "bfloat16");
    const k = partRows(8, 128, undefined, "bfloat16");
    expect(tokenBlocks([q, k, k])).toEqual({ threads: 256, blocks: [2, 1, 1] });
    const all = partRows(32, 128, 4096, "bfloat16");
    expect(all).toEqual({ all: true, rows: 1, lanes: 256 });
    expect(tokenBlocks([all, k, k])).toEqual({ threads: 256, blocks: [1, 1, 1] });
  });
  test("have as few threads as a small step needs, and none for a part without heads", () => {
    const one = partRows(1, 16, undefined, "float32");
    expect(tokenBlocks([one, one, partRows(0, 16, undefined, "float32")])).toEqual({
      threads: 32,
      blocks: [1, 1, 0],
    });
  });
});
