import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  alibiSlopesFor,
  attentionData,
  attentionOracle,
  attentionProblem,
  embedInView,
  pageTable,
  readView,
  viewLayout,
  viewRecipe,
} from "../../src/index.ts";
import type { AttentionProblem, ViewRecipe } from "../../src/index.ts";

const sample = fc.sample(attentionProblem(), { numRuns: 400, seed: 1 });

describe("attention problems", () => {
  test("fit their own sizes", () => {
    for (const problem of sample) {
      const data = attentionData(problem);
      expect(attentionOracle(data.q, data.k, data.v, data.options).out.some(Number.isNaN)).toBe(false);
    }
  });

  const kinds: Readonly<Record<string, (p: AttentionProblem) => unknown>> = {
    "groups of more than one head over more than one key head": (p) =>
      p.dims.Hkv > 1 && p.dims.Hq > p.dims.Hkv,
    "values of another size": (p) => p.dims.Dv !== p.dims.D,
    "a one-sided window": (p) => p.window && (p.window.left === undefined) !== (p.window.right === undefined),
    "a negative offset": (p) => typeof p.queryOffset === "number" && p.queryOffset < 0,
    "an offset per batch entry": (p) => Array.isArray(p.queryOffset),
    "an empty cache": (p) => p.kvLengths?.includes(0),
    "a boolean mask broadcast over heads only": (p) =>
      p.mask?.kind === "boolean" && p.mask.shape.length === 4 && p.mask.shape[1] === 1 && p.dims.Hq > 1,
    "an additive mask of rank 2": (p) => p.mask?.kind === "additive" && p.mask.shape.length === 2,
    "sinks with a softcap": (p) => p.sinks && p.softcap,
    "dropout with a seed above 32 bits": (p) => p.dropout !== undefined && p.dropout.seed > 2 ** 32,
    "none of mask, window, offset, lengths and softcap": (p) =>
      [p.mask, p.window, p.queryOffset, p.kvLengths, p.softcap].every((option) => option === undefined),
  };
  for (const [kind, holds] of Object.entries(kinds))
    test(`include ${kind}`, () => expect(sample.some((p) => Boolean(holds(p)))).toBe(true));

  test("leave out what they are told to", () => {
    for (const p of fc.sample(attentionProblem({ without: ["groups", "mask", "sinks", "valueDim"] }), 100)) {
      expect([p.dims.Hq, p.dims.Dv, p.mask, p.sinks]).toEqual([p.dims.Hkv, p.dims.D, undefined, false]);
    }
  });

  test("give the same values for the same problem", () => {
    expect(attentionData(sample[7]!).q).toEqual(attentionData(sample[7]!).q);
  });

  test("shrink to the smallest problem that still fails", () => {
    const property = fc.property(attentionProblem(), (p) => p.dims.Sk < 5 || !p.isCausal);
    const { counterexample } = fc.check(property, { seed: 3, numRuns: 500 });
    const found = counterexample![0];
    expect(found.dims).toEqual({ B: 1, S: 1, Sk: 5, Hkv: 1, Hq: 1, D: 1, Dv: 1 });
    expect([found.mask, found.window, found.softcap, found.sinks, found.seed]).toEqual([
      undefined,
      undefined,
      undefined,
      false,
      0,
    ]);
  });
});

test("ALiBi slopes halve for 8 heads and interleave for 6", () => {
  expect([...alibiSlopesFor(8)]).toEqual([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]);
  expect([...alibiSlopesFor(6)]).toEqual([1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]);
  expect([...alibiSlopesFor(1)]).toEqual([2 ** -8]);
});

describe("views", () => {
  const shaped = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 });

  test("give back what was embedded, and nothing else is left in the base", () => {
    fc.assert(
      fc.property(
        shaped.chain((shape) => viewRecipe(shape)),
        (recipe) => {
          const count = recipe.shape.reduce((a, n) => a * n, 1);
          const data = Float64Array.from({ length: count }, (_, n) => n + 1);
          const base = embedInView(recipe, data);
          expect([...readView(recipe, base)]).toEqual([...data]);
          expect(base.filter((x) => !Number.isNaN(x)).length).toBe(count);
        },
      ),
    );
  });

  test("slices and permutation describe the same view as offset and strides", () => {
    fc.assert(
      fc.property(
        shaped.chain((shape) => viewRecipe(shape)),
        (recipe) => {
          const { baseShape, slices, permutation, strides, offset } = viewLayout(recipe);
          const baseStrides = baseShape.map((_, a) => baseShape.slice(a + 1).reduce((x, n) => x * n, 1));
          expect(strides).toEqual(permutation.map((a) => baseStrides[a]! * slices[a]!.step));
          expect(offset).toBe(slices.reduce((sum, slice, a) => sum + slice.start * baseStrides[a]!, 0));
          slices.forEach((slice, a) => expect(slice.stop).toBeLessThanOrEqual(baseShape[a]!));
          permutation.forEach((a, axis) =>
            expect(Math.ceil((slices[a]!.stop - slices[a]!.start) / slices[a]!.step)).toBe(
              recipe.shape[axis]!,
            ),
          );
        },
      ),
    );
  });

  test("include transposed, stepped and padded ones", () => {
    const recipes = fc.sample(viewRecipe([2, 3, 4]), { numRuns: 200, seed: 1 });
    expect(recipes.some((r) => r.order.join() === "2,1,0")).toBe(true);
    expect(recipes.some((r) => r.order.join() === "0,1,2" && r.step.join() === "1,1,1")).toBe(true);
    expect(recipes.some((r) => r.step[2] === 2)).toBe(true);
    expect(recipes.some((r) => r.after[1] === 2 && r.before[0] === 1)).toBe(true);
  });

  test("shrink to the contiguous tensor", () => {
    const { counterexample } = fc.check(
      fc.property(viewRecipe([2, 3]), (recipe: ViewRecipe) => recipe.shape.length !== 2),
      { seed: 1 },
    );
    expect(viewLayout(counterexample![0])).toMatchObject({ strides: [3, 1], offset: 0, length: 6 });
  });
});

describe("page tables", () => {
  const tables = fc.sample(pageTable(), { numRuns: 300, seed: 1 });

  test("list each page at most once, and just enough of them", () => {
    for (const table of tables) {
      expect(new Set(table.indices).size).toBe(table.indices.length);
      table.lengths.forEach((length, n) => {
        expect(table.indptr[n + 1]! - table.indptr[n]!).toBe(Math.ceil(length / table.pageSize));
        expect(table.queryIndptr[n + 1]! - table.queryIndptr[n]!).toBeLessThanOrEqual(length);
      });
    }
  });

  test("mix decode with prefill, in random page order, with spare pages and empty sequences", () => {
    const counts = (t: (typeof tables)[number]): number[] =>
      [...t.lengths].map((_, n) => t.queryIndptr[n + 1]! - t.queryIndptr[n]!);
    expect(tables.some((t) => counts(t).includes(1) && counts(t).some((c) => c > 2))).toBe(true);
    expect(tables.some((t) => [...t.indices].some((page, n) => n > 0 && page < t.indices[n - 1]!))).toBe(
      true,
    );
    expect(tables.some((t) => t.numPages > t.indices.length)).toBe(true);
    expect(tables.some((t) => t.lengths.includes(0))).toBe(true);
    expect(tables.some((t) => t.lengths.some((length) => length % t.pageSize !== 0))).toBe(true);
  });
});
