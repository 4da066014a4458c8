/** Page tables in device memory, which no host looks at: what does not fit costs its sequence, and neither the others nor the device. */
import {
  cast,
  empty,
  kvAppend,
  pagedAttentionWithLse,
  type PagedView,
  type Pages,
  randn,
  scope,
  sealPages,
  tensor,
} from "@heed/tensor";
import type { Tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import "../../src/index.ts";
import { emulatedMissing, testedEngine } from "../support.ts";

const [PAGES, HEADS, SIZE] = [7, 2, 32];
const INDICES = [1, 0, 2, 4, 3, 5];
type Table = Record<"queryIndptr" | "indptr" | "indices" | "lengths", number[]>;
/** Two sequences of three pages, each with `rows` queries. */
const fitting = (rows: number): Table => ({
  queryIndptr: [0, rows, 2 * rows],
  indptr: [0, 3, 6],
  indices: INDICES,
  lengths: [3 * SIZE - 7, 2 * SIZE + 1],
});
/** Every kernel that walks over pages. */
const KERNELS = {
  decode: { dtype: "bfloat16", rows: 1, D: 64, Dv: 64, pages: "float" },
  forward: { dtype: "float16", rows: 20, D: 64, Dv: 64, pages: "float" },
  latent: { dtype: "bfloat16", rows: 1, D: 576, Dv: 512, pages: "float" },
  any: { dtype: "float32", rows: 2, D: 40, Dv: 40, pages: "float" },
  int8: { dtype: "bfloat16", rows: 1, D: 64, Dv: 64, pages: "int8" },
  int4: { dtype: "bfloat16", rows: 1, D: 64, Dv: 64, pages: "int4" },
} as const;
type Kernel = keyof typeof KERNELS;

const int32 = (values: readonly number[]): Tensor<"int32"> =>
  tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine: testedEngine() });

function pagesOf(kernel: Kernel): Pick<PagedView<Pages>, "kPages" | "vPages"> {
  const { dtype, D, Dv, pages } = KERNELS[kernel];
  const engine = testedEngine();
  const numbers = (d: number, seed: number): Tensor =>
    randn([PAGES, HEADS, SIZE, d], { dtype, seed, engine });
  if (pages === "float") {
    const kPages = numbers(D, 1);
    return { kPages, vPages: Dv < D ? kPages.slice(-1, 0, Dv) : numbers(Dv, 2) };
  }
  if (pages === "int8") {
    const [kPages, vPages] = [0, 1].map(() => ({
      format: "int8" as const,
      codes: empty([PAGES, HEADS, SIZE, D], { dtype: "uint8", engine }),
      scales: empty([PAGES, HEADS, SIZE], { engine }),
    }));
    const rows = (seed: number): Tensor => randn([PAGES * SIZE, HEADS, D], { seed, engine });
    kvAppend(rows(1), rows(2), kPages!, vPages!, int32(Array.from({ length: PAGES * SIZE }, (_, i) => i)));
    return { kPages: kPages!, vPages: vPages! };
  }
  const groups = (shape: number[], seed: number) => ({
    format: "int4" as const,
    codes: empty([PAGES, HEADS, SIZE, D / 2], { dtype: "uint8", engine }),
    scales: empty([PAGES, HEADS, ...shape], { engine }),
    zeros: empty([PAGES, HEADS, ...shape], { engine }),
    residual: numbers(D, seed),
  });
  const [kPages, vPages] = [groups([1, D], 1), groups([D / 32, SIZE], 2)];
  const all = int32(Array.from({ length: PAGES }, (_, i) => i));
  sealPages(kPages, vPages, all, all);
  return { kPages, vPages };
}
/** Output and lse of the rows of each sequence. */
async function attend(
  kernel: Kernel,
  table: Table,
): Promise<{ readonly out: number[][]; readonly lse: number[][] }> {
  const { dtype, rows, D } = KERNELS[kernel];
  const engine = testedEngine();
  const [output, lse] = scope(() => {
    const { queryIndptr, indptr, indices, lengths } = table;
    const q = randn([2 * rows, 4, D], { dtype, seed: 3, engine });
    const view = {
      ...pagesOf(kernel),
      table: {
        queryIndptr: int32(queryIndptr),
        indptr: int32(indptr),
        indices: int32(indices),
        lengths: int32(lengths),
        slots: int32(new Array<number>(2 * rows).fill(-1)),
        epoch: 1,
      },
    };
    const results = pagedAttentionWithLse(q, view, { fused: "require" });
    return [cast(results.output, "float32"), results.lse];
  });
  const halves = async (t: Tensor): Promise<number[][]> => {
    const values = [...(await (t as Tensor<"float32">).read())];
    t[Symbol.dispose]();
    return [values.slice(0, values.length / 2), values.slice(values.length / 2)];
  };
  return { out: await halves(output!), lse: await halves(lse!) };
}
const outside = fc.oneof(
  fc.integer({ min: -(2 ** 31), max: -1 }),
  fc.integer({ min: 2 * PAGES, max: 2 ** 31 - 1 }),
);
/** One number of a table that does not fit, and the sequence that it is of; where queries lie is the kernel's to know too. */
const broken = fc.oneof(
  fc.record({ field: fc.constant("indices" as const), at: fc.nat(2), value: outside }),
  fc.record({ field: fc.constant("indices" as const), at: fc.integer({ min: 3, max: 5 }), value: outside }),
  fc.record({
    field: fc.constant("lengths" as const),
    at: fc.nat(1),
    value: fc.oneof(outside, fc.constant(3 * SIZE + 1)).filter((x) => Math.abs(x) > 3 * SIZE),
  }),
);

describe.skipIf(emulatedMissing !== undefined)("a page table on a device that does not fit", () => {
  for (const kernel of Object.keys(KERNELS) as Kernel[])
    test(`makes its sequence NaN and changes no bit of another, ${kernel}`, async () => {
      const table = fitting(KERNELS[kernel].rows);
      const good = await attend(kernel, table);
      expect(good.out.flat().every(Number.isFinite)).toBe(true);
      await fc.assert(
        fc.asyncProperty(broken, async ({ field, at, value }) => {
          const bad = await attend(kernel, { ...table, [field]: table[field].with(at, value) });
          const hit = field === "indices" ? Math.floor(at / 3) : at;
          for (const what of ["out", "lse"] as const) {
            expect(bad[what][hit]!.every(Number.isNaN)).toBe(true);
            expect(bad[what][1 - hit]).toEqual(good[what][1 - hit]!);
          }
        }),
        { numRuns: 12 },
      );
      expect(testedEngine().lost).toBe(false);
    });
  test.each(Object.keys(KERNELS) as Kernel[])("is survived wherever its ends lie, %s", async (kernel) => {
    const table = fitting(KERNELS[kernel].rows);
    const ends = fc.record({
      field: fc.constant("indptr" as const),
      at: fc.nat(2),
      value: fc.oneof(outside, fc.integer({ min: -3, max: 9 })),
    });
    await fc.assert(
      fc.asyncProperty(ends, async ({ field, at, value }) => {
        const { out } = await attend(kernel, { ...table, [field]: table[field].with(at, value) });
        expect(out.flat()).toHaveLength(2 * KERNELS[kernel].rows * 4 * KERNELS[kernel].Dv);
      }),
      { numRuns: 20 },
    );
    expect(testedEngine().lost).toBe(false);
    expect((await attend(kernel, table)).out.flat().every(Number.isFinite)).toBe(true);
  });
});
