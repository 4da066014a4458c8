/** Schedules past 2^32 elements: they are numbers alone, so that no memory is needed to see that none of them wraps. */
import type { DType } from "@heed/tensor";
import { Block } from "@heed/tensor/native";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { sizeOf } from "../../src/core/axes.ts";
import { copyPlan } from "../../src/core/copy.ts";
import { elementwise } from "../../src/core/elementwise.ts";
import { gatherPlan } from "../../src/core/gather.ts";
import { reducePlan } from "../../src/core/reduce.ts";
import { softmaxPlan } from "../../src/core/softmax.ts";
import { WALK } from "../../src/core/structs.ts";
import type { View } from "../../src/core/view.ts";
import { type Walk, writeWalk } from "../../src/core/walk.ts";
import type { Launch } from "../../src/launch.ts";

const H100 = { multiprocessors: 132, sharedPerBlock: 232_448, computeCapability: 90, level2Bytes: 50 << 20 };
function view(dtype: DType, shape: readonly number[], last = 1): View {
  return { dtype, shape, strides: shape.map((_, i) => sizeOf(shape.slice(i + 1)) * last) };
}
/** [rows, columns] of more than 2^32 elements, fewer than 2^45. */
const large = fc
  .tuple(fc.integer({ min: 1, max: 2 ** 22 }), fc.integer({ min: 2 ** 10 + 1, max: 2 ** 22 }))
  .map(([a, b]): [number, number] => [Math.max(a, Math.ceil((2 ** 32 + 1) / b)), b]);
const dtypes = fc.constantFrom<DType>("float32", "bfloat16", "float64", "uint8");

/** The device takes the grid. */
function fits({ grid, threads }: Launch): void {
  const most = [2 ** 31 - 1, 65_535, 65_535];
  grid.forEach((n, axis) => {
    expect(Number.isInteger(n)).toBe(true);
    expect(n).toBeGreaterThan(0);
    expect(n).toBeLessThanOrEqual(most[axis]!);
  });
  expect(threads).toBeLessThanOrEqual(1024);
}
/** Units of `width` cover each of `rows` rows to its end, and arrive whole in the argument block. */
function covers(walk: Walk, rows: bigint, length: number): void {
  const [width, perRow, units] = [BigInt(walk.width), BigInt(walk.perRow), BigInt(walk.units)];
  expect(perRow * width >= BigInt(length) && (perRow - 1n) * width < BigInt(length)).toBe(true);
  expect(units).toBe(rows * perRow);
  const memory = new ArrayBuffer(256);
  writeWalk(new Block(memory), 0, walk);
  const written = new DataView(memory);
  expect(written.getBigInt64(WALK.fields.units, true)).toBe(units);
  expect(written.getBigInt64(WALK.fields.per_row, true)).toBe(perRow);
}

describe("schedules past 2^32 elements", () => {
  test("of elementwise work and copies reach every element, of dense and of padded rows", () => {
    fc.assert(
      fc.property(large, dtypes, fc.boolean(), ([rows, length], dtype, isDense) => {
        const shape = [rows, length];
        const x = view(dtype, shape);
        const other: View = isDense ? x : { dtype, shape, strides: [length + 3, 1] };
        const plans = [elementwise("k", dtype, [x, other], H100), copyPlan(x, other, H100)];
        for (const { axes, launch, ...plan } of plans) {
          fits(launch);
          expect(axes.shape.map(BigInt).reduce((a, b) => a * b, 1n)).toBe(BigInt(rows) * BigInt(length));
          const last = axes.shape.at(-1)!;
          if ("walk" in plan) covers(plan.walk, (BigInt(rows) * BigInt(length)) / BigInt(last), last);
        }
      }),
    );
  });
  test("of a transpose have tiles for all of both axes", () => {
    fc.assert(
      fc.property(large, ([rows, length]) => {
        const x: View = { dtype: "float32", shape: [rows, length], strides: [1, rows] };
        const plan = copyPlan(x, view("float32", [rows, length]), H100);
        fits(plan.launch);
        if (!("tiles" in plan)) return expect(rows).toBeLessThan(8);
        const { tiles, down, across } = plan.tiles;
        expect(down * 32).toBeGreaterThanOrEqual(rows);
        expect(across * 32).toBeGreaterThanOrEqual(length);
        expect(BigInt(tiles)).toBe(BigInt(down) * BigInt(across));
      }),
    );
  });
  test("of reductions take every element once, in pieces or whole", () => {
    fc.assert(
      fc.property(large, fc.constantFrom("rows", "columns", "all"), ([rows, length], kept) => {
        const shape = [kept === "rows" ? rows : 1, kept === "columns" ? length : 1];
        const { pass, results } = reducePlan(view("float32", [rows, length]), view("float32", shape));
        expect(results).toBe(sizeOf(shape));
        const { along, pieces, piece, launch } = pass;
        fits(launch);
        expect(BigInt(pieces) * BigInt(piece) >= BigInt(along.units)).toBe(true);
        expect(BigInt(pieces - 1) * BigInt(piece) < BigInt(along.units)).toBe(true);
        expect(BigInt(along.units) * BigInt(along.width) * BigInt(results)).toBeGreaterThanOrEqual(
          BigInt(rows) * BigInt(length),
        );
      }),
    );
  });
  test("of softmax and gather count every row", () => {
    fc.assert(
      fc.property(large, ([length, rows]) => {
        const x = view("bfloat16", [rows, length]);
        const plan = softmaxPlan(x, x, H100);
        fits(plan.launch);
        expect(plan.rows).toBe(rows);
        const gathered = gatherPlan(x, x, H100);
        fits(gathered.launch);
        expect(BigInt(gathered.walk.perRow) * BigInt(gathered.walk.width)).toBeGreaterThanOrEqual(
          BigInt(length),
        );
      }),
    );
  });
});
