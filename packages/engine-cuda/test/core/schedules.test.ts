import type { DType } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { layouts, positions, shapes } from "@heed/testkit/core/strided";
import { collapse, sizeOf } from "../../src/core/axes.ts";
import { copyPlan } from "../../src/core/copy.ts";
import { elementwise } from "../../src/core/elementwise.ts";
import { gatherPlan, scatterAddPlan } from "../../src/core/gather.ts";
import { gemmOf, productLaunch, productOf } from "../../src/core/product.ts";
import { reducePlan } from "../../src/core/reduce.ts";
import { softmaxPlan } from "../../src/core/softmax.ts";
import type { View } from "../../src/core/view.ts";
import { powerOfTwo, walkOf } from "../../src/core/walk.ts";

const H100 = { multiprocessors: 132, sharedPerBlock: 232_448, computeCapability: 90, level2Bytes: 50 << 20 };
function view(dtype: DType, shape: readonly number[], strides?: readonly number[]): View {
  const dense = shape.map((_, i) => sizeOf(shape.slice(i + 1)));
  return { dtype, shape, strides: strides ?? dense };
}
/** Element offsets of two operands together, whatever the order. */
function pairs(shape: readonly number[], strides: readonly (readonly number[])[]): string[] {
  const [a, b] = strides.map((s) => positions({ shape, strides: s, offset: 0, length: 0 }));
  return a!.map((x, i) => `${x},${b![i]}`).toSorted();
}
describe("collapsed axes", () => {
  test("hold the same elements, in as many or fewer axes", () => {
    const problem = shapes(0, 5).chain((shape) =>
      fc.record({ out: layouts(shape, false), x: layouts(shape, true) }),
    );
    fc.assert(
      fc.property(problem, ({ out, x }) => {
        const axes = collapse({ shape: out.shape, strides: [out.strides, x.strides] });
        expect(pairs(axes.shape, axes.strides)).toEqual(pairs(out.shape, [out.strides, x.strides]));
        expect(axes.shape.length).toBeLessThanOrEqual(Math.max(1, out.shape.length));
        expect(axes.shape.length === 1 || axes.shape.every((n) => n !== 1)).toBe(true);
      }),
      { numRuns: 300 },
    );
  });
  test("a dense tensor is one axis, its transpose too when both are transposed", () => {
    expect(
      collapse({
        shape: [2, 3, 4],
        strides: [
          [12, 4, 1],
          [12, 4, 1],
        ],
      }),
    ).toEqual({
      shape: [24],
      strides: [[1], [1]],
    });
    expect(
      collapse({
        shape: [3, 4],
        strides: [
          [1, 3],
          [1, 3],
        ],
      }).shape,
    ).toEqual([12]);
  });
  test("a padded row and a broadcast axis stay apart", () => {
    expect(
      collapse({
        shape: [2, 3],
        strides: [
          [3, 1],
          [5, 1],
        ],
      }).shape,
    ).toEqual([2, 3]);
    expect(
      collapse({
        shape: [2, 3],
        strides: [
          [3, 1],
          [0, 1],
        ],
      }).shape,
    ).toEqual([2, 3]);
  });
  test("the result's smallest step comes last", () => {
    const axes = collapse({
      shape: [4, 3],
      strides: [
        [1, 4],
        [3, 1],
      ],
    });
    expect(axes.strides[0]).toEqual([4, 1]);
  });
});
describe("units", () => {
  test("are vectors where each operand is dense or repeats, single elements elsewhere", () => {
    expect(
      walkOf(
        {
          shape: [5, 30],
          strides: [
            [30, 1],
            [0, 1],
          ],
        },
        8,
      ),
    ).toEqual({ units: 20, perRow: 4, width: 8 });
    expect(
      walkOf(
        {
          shape: [5, 30],
          strides: [
            [30, 1],
            [1, 5],
          ],
        },
        8,
      ),
    ).toEqual({ units: 150, perRow: 30, width: 1 });
    expect(walkOf({ shape: [5, 7], strides: [[7, 1]] }, 8).width).toBe(1);
  });
  test("launches have whole warps and at most 16 blocks a multiprocessor", () => {
    const x = view("float32", [1 << 30]);
    const { launch, walk } = elementwise("heed_cuda_unary_float32", "float32", [x, x], H100);
    expect(walk.units).toBe(2 ** 28);
    expect(launch).toEqual({
      kernel: "heed_cuda_unary_float32",
      grid: [2112, 1, 1],
      threads: 256,
      shared: 0,
    });
    const small = view("float32", [3]);
    expect(elementwise("k", "float32", [small, small], H100).launch.threads).toBe(32);
  });
});
describe("copies", () => {
  test("go by size, by tiles or by conversion", () => {
    const [rows, columns] = [64, 48];
    const dense = view("float16", [rows, columns]);
    const turned = view("float16", [rows, columns], [1, rows]);
    const kernel = (x: View, out: View): string => copyPlan(x, out, H100).launch.kernel;
    expect(kernel(dense, dense)).toBe("heed_cuda_move");
    expect(kernel(turned, dense)).toBe("heed_cuda_move_transposed");
    expect(kernel(turned, turned)).toBe("heed_cuda_move");
    expect(kernel(view("float16", [rows, columns], [2, 2 * rows]), dense)).toBe("heed_cuda_move");
    expect(kernel(view("float16", [4, 4], [1, 4]), view("float16", [4, 4]))).toBe("heed_cuda_move");
    expect(kernel(dense, view("float32", [rows, columns]))).toBe("heed_cuda_convert_float");
    expect(kernel(dense, view("float64", [rows, columns]))).toBe("heed_cuda_convert_any");
    expect(kernel(view("bool", [8]), view("uint8", [8]))).toBe("heed_cuda_convert_any");
  });
  test("tiles cover both axes and every matrix", () => {
    const x = view("int64", [7, 65, 40], [65 * 40, 1, 65]);
    const plan = copyPlan(x, view("int64", [7, 65, 40]), H100);
    expect("tiles" in plan && plan.tiles).toEqual({ tiles: 42, down: 3, across: 2 });
    expect(plan.launch.shared).toBe(32 * 33 * 8);
  });
});
describe("reductions", () => {
  test("of rows have neighbouring threads on one row, of columns on neighbouring results", () => {
    const x = view("float32", [4096, 4096]);
    const rows = reducePlan(x, view("float32", [4096, 1])).pass;
    expect({ dense: rows.dense, width: rows.along.width, pieces: rows.pieces }).toEqual({
      dense: true,
      width: 4,
      pieces: 1,
    });
    const columns = reducePlan(x, view("float32", [1, 4096])).pass;
    expect({ dense: columns.dense, across: columns.across, width: columns.along.width }).toEqual({
      dense: false,
      across: 32,
      width: 1,
    });
    expect(columns.pieces).toBe(3);
  });
  test("that are long and few are cut into pieces, whatever the device", () => {
    const { pass } = reducePlan(view("bfloat16", [1 << 24]), view("bfloat16", [1]));
    expect(pass.pieces).toBe(264);
    expect(pass.piece * pass.pieces).toBeGreaterThanOrEqual(pass.along.units);
    expect(pass.launch.kernel).toBe("heed_cuda_reduce_float32");
  });
  test("have a power of two of lanes, and shared memory for one value a thread", () => {
    fc.assert(
      fc.property(
        shapes(1, 4).chain((shape) => fc.tuple(layouts(shape, true), fc.subarray(shape.map((_, i) => i)))),
        ([at, gone]) => {
          const shape = at.shape.map((n, i) => (gone.includes(i) ? 1 : n));
          const { pass, results } = reducePlan(view("float64", at.shape, at.strides), view("float64", shape));
          const lanes = pass.launch.threads / pass.across;
          expect(lanes).toBe(powerOfTwo(lanes));
          expect(pass.launch.threads).toBeLessThanOrEqual(256);
          expect(pass.launch.shared).toBe(8 * pass.launch.threads);
          expect(pass.launch.grid[0] * pass.across).toBeGreaterThanOrEqual(results);
          expect((pass.pieces - 1) * pass.piece).toBeLessThan(pass.along.units);
        },
      ),
    );
  });
});
describe("rows", () => {
  const lanes = (n: number): number => {
    const x = view("float32", [100, n]);
    return softmaxPlan(x, x, H100).lanes;
  };
  test("of a softmax get a lane a vector, a warp, or a block", () => {
    expect([1, 4, 5, 128, 512, 513, 100_000].map(lanes)).toEqual([1, 1, 2, 32, 32, 256, 256]);
    const x = view("float32", [100, 4]);
    expect(softmaxPlan(x, x, H100).launch.threads).toBe(128);
  });
  test("of a gather are units of all rows, of a sum those of one", () => {
    const [x, out] = [view("float32", [1000, 64]), view("float32", [7, 64])];
    expect(gatherPlan(x, out, H100).walk.units).toBe(7 * 16);
    expect(scatterAddPlan(out, x, H100).walk.units).toBe(16);
    expect(scatterAddPlan(out, x, H100).launch.grid[0]).toBe(2); // 7 tasks of a warp
  });
});
describe("products", () => {
  const of = (a: View, b: View, lead: readonly number[] = []) => {
    const out = view(a.dtype, [...lead, a.shape.at(-2)!, b.shape.at(-1)!]);
    return productOf(a, b, out);
  };
  test("a batch that shares b is more rows", () => {
    const b = view("float32", [4, 5, 16, 8], [0, 0, 8, 1]);
    const p = of(view("float32", [4, 5, 6, 16]), b, [4, 5]);
    expect([p.M, p.N, p.K, p.batch.shape]).toEqual([120, 8, 16, [1]]);
    const padded = of(view("float32", [4, 5, 6, 16], [1000, 96, 16, 1]), b, [4, 5]);
    expect([padded.M, padded.batch.shape]).toEqual([30, [4]]);
  });
  test("a batch of one row each is more rows", () => {
    const p = of(view("float32", [9, 1, 16]), view("float32", [9, 16, 8], [0, 8, 1]), [9]);
    expect([p.M, p.a[0], p.batch.shape]).toEqual([9, 16, [1]]);
  });
  test("few rows against a weight have a kernel of their own; tiles of 128 once they fill the device", () => {
    const kernel = (dtype: DType, M: number, N: number, K: number, dense = true): string => {
      const b = view(dtype, [K, N], dense ? [1, K] : [N, 1]);
      return productLaunch(dtype, of(view(dtype, [M, K]), b), H100).kernel;
    };
    expect(kernel("bfloat16", 1, 4096, 4096)).toBe("heed_cuda_matmul_bfloat16_one");
    expect(kernel("bfloat16", 8, 4096, 4096)).toBe("heed_cuda_matmul_bfloat16_few");
    expect(kernel("bfloat16", 8, 4096, 4096, false)).toBe("heed_cuda_matmul_bfloat16_64");
    expect(kernel("bfloat16", 512, 4096, 4096)).toBe("heed_cuda_matmul_bfloat16_64");
    expect(kernel("bfloat16", 4096, 4096, 4096)).toBe("heed_cuda_matmul_bfloat16_128");
    expect(kernel("float64", 4096, 4096, 4096)).toBe("heed_cuda_matmul_float64_64");
  });
  test("own tiles stay within 48 KiB, which every device gives without asking", () => {
    for (const dtype of ["float64", "float32", "float16"] as const)
      for (const M of [64, 1 << 14]) {
        const p = of(view(dtype, [M, 64]), view(dtype, [64, M]));
        expect(productLaunch(dtype, p, H100).shared).toBeLessThanOrEqual(48 << 10);
      }
  });
  test("of one row or column are dense whatever the strides of that axis say", () => {
    const at = { a: 1, b: 2, out: 3 };
    for (const step of [1, 4]) {
      const b = view("float32", [16, 1], [step, 100]);
      const p = productOf(view("float32", [32, 16]), b, view("float32", [32, 1], [8, 8]));
      expect(gemmOf("float32", p, at, 1, 0)).toMatchObject({ transposeB: step === 1, ldc: 8, n: 1 });
    }
    const row = productOf(
      view("float32", [1, 16], [7, 1]),
      view("float32", [16, 64]),
      view("float32", [1, 64]),
    );
    expect(gemmOf("float32", row, at, 1, 0)).toMatchObject({ lda: 16, ldc: 64, m: 1 });
  });
  test("go to the library with their leading dimensions, or not at all", () => {
    const at = { a: 1, b: 2, out: 3 };
    const weight = view("bfloat16", [64, 128], [1, 64]); // [128, 64] transposed
    const p = of(view("bfloat16", [32, 64], [80, 1]), weight);
    const expected = {
      transposeA: false,
      transposeB: true,
      m: 32,
      n: 128,
      k: 64,
      lda: 80,
      ldb: 64,
      ldc: 128,
    };
    expect(gemmOf("bfloat16", p, at, 1, 0)).toMatchObject({ ...expected, batch: 1, a: 1, b: 2, c: 3 });
    expect(gemmOf("bfloat16", of(view("bfloat16", [32, 64], [64, 2]), weight), at, 1, 0)).toBeUndefined();
    expect(gemmOf("bfloat16", of(view("bfloat16", [32, 64], [8, 1]), weight), at, 1, 0)).toBeUndefined(); // rows overlap
    const turned = productOf(
      view("float32", [8, 8]),
      view("float32", [8, 8]),
      view("float32", [8, 8], [1, 8]),
    );
    expect(gemmOf("float32", turned, at, 1, 0)).toBeUndefined();
  });
});
