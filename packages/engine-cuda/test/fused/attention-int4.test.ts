/** A decode step over 4-bit pages and their residual pages on the emulated device, on tensor cores, against the CPU's in float32. */
import "@heed/engine-cpu";
import {
  cast,
  type FloatDType,
  full,
  getEngine,
  pagedAttentionWithLse,
  type QuantisedGroups,
  scope,
  type Tensor,
  tensor,
} from "@heed/tensor";
import { createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import "../../src/index.ts";
import { readsInPlace } from "../../src/fused/attention/operands.ts";
import { emulatedMissing } from "../support.ts";

interface Problem {
  readonly dtype: "bfloat16" | "float16";
  readonly residual: "bfloat16" | "float16" | "float32";
  readonly G: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly pageSize: number;
  readonly lengths: readonly number[];
  readonly queries: readonly number[];
  readonly window?: number;
  readonly softcap?: number;
  readonly sinks?: boolean;
  /** Scales of the page in no table are NaN. */
  readonly poison?: boolean;
  /** The last value of each sequence is NaN, by its scale or in its residual page; one of its numbers is enough. */
  readonly oddLast?: boolean;
  readonly seed: number;
}
const total = (n: readonly number[]): number => n.reduce((a, b) => a + b, 0);
const running = (n: readonly number[]): number[] => [0, ...n.map((_, i) => total(n.slice(0, i + 1)))];

interface Result {
  readonly out: Float64Array;
  readonly lse: Float64Array;
}
/** Output and lse of a problem's sequences, all or those that `only` names, each with the pages it has among all. */
async function run(
  name: string,
  p: Problem,
  only: readonly number[] = p.lengths.map((_, n) => n),
): Promise<Result> {
  const engine = getEngine(name);
  const rng = createRng(p.seed);
  const counts = p.lengths.map((length) => Math.ceil(length / p.pageSize));
  const P = total(counts) + 1; // page 0 is in no table
  const starts = running(counts);
  const dealt = rng.permutation(total(counts)).map((page) => page + 1);
  const sequences = p.lengths.map((length, n) => {
    const pages = dealt.slice(starts[n], starts[n + 1]);
    // The last page is not sealed where it is not full, nor is every third one before it.
    return pages.map((page, i) => (i % 3 === 1 || (i + 1) * p.pageSize > length ? P + page : page));
  });
  const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
  const floats = (shape: readonly number[], next: (i: number) => number): Tensor =>
    tensor(
      Float32Array.from({ length: size(shape) }, (_, i) => next(i)),
      shape,
      { dtype: "float32", engine },
    );
  const ints = (values: readonly number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });
  const pagesOf = (role: "keys" | "values", width: number): QuantisedGroups => {
    const groups = Math.ceil(width / 32);
    const pairs = role === "keys" ? [Math.ceil(p.pageSize / 32), width] : [groups, p.pageSize];
    const inPage = p.Hkv * size(pairs);
    const codes = Uint8Array.from({ length: P * p.Hkv * p.pageSize * 16 * groups }, () => rng.int(0, 255));
    const last = p.lengths.map((length, n) => [sequences[n]!.at(-1)!, (length - 1) % p.pageSize] as const);
    const isLast = (page: number, row: number): boolean =>
      p.oddLast === true && role === "values" && last.some((at) => at[0] === page && at[1] === row);
    const odd = (i: number): boolean =>
      (p.poison === true && i < inPage) || isLast(Math.floor(i / inPage), i % p.pageSize);
    const oddFloat = (i: number): boolean =>
      i % width === 0 &&
      isLast(P + Math.floor(i / (width * p.pageSize * p.Hkv)), Math.floor(i / width) % p.pageSize);
    return {
      format: "int4",
      codes: tensor(codes, [P, p.Hkv, p.pageSize, 16 * groups], { dtype: "uint8", engine }),
      scales: floats([P, p.Hkv, ...pairs], (i) =>
        odd(i) ? NaN : rng.uniform(0.02, 0.22),
      ) as Tensor<"float32">,
      zeros: floats([P, p.Hkv, ...pairs], (i) => (odd(i) ? NaN : rng.uniform(-3, -1.5))) as Tensor<"float32">,
      residual: cast(
        floats([P, p.Hkv, p.pageSize, width], (i) => (oddFloat(i) ? NaN : rng.normal())),
        p.residual,
      ),
    };
  };
  const [out, lse] = scope(() => {
    const all = cast(
      floats([total(p.queries), p.G * p.Hkv, p.D], () => rng.normal()),
      p.dtype,
    );
    const kPages = pagesOf("keys", p.D);
    const vPages = pagesOf("values", p.Dv);
    const sinks = floats([p.G * p.Hkv], () => rng.normal());
    const firstQuery = running(p.queries);
    const q =
      only.length === p.lengths.length ? all : all.slice(0, firstQuery[only[0]!]!, firstQuery[only[0]! + 1]!);
    const table = {
      queryIndptr: ints(running(only.map((n) => p.queries[n]!))),
      indptr: ints(running(only.map((n) => counts[n]!))),
      indices: ints(only.flatMap((n) => sequences[n]!)),
      lengths: ints(only.map((n) => p.lengths[n]!)),
      slots: ints(Array.from({ length: q.shape[0]! }, () => 0)),
      epoch: 1,
    };
    const { output, lse } = pagedAttentionWithLse(
      q as Tensor<FloatDType>,
      { kPages, vPages, table },
      {
        fused: name === "cpu" ? "auto" : "require",
        ...(p.softcap ? { softcap: p.softcap } : {}),
        ...(p.window === undefined ? {} : { window: { left: p.window } }),
        ...(p.sinks ? { sinks } : {}),
      },
    );
    return [output, lse];
  });
  const read = async (t: Tensor): Promise<Float64Array> => {
    using wide = cast(t, "float64");
    t[Symbol.dispose]();
    return (await wide.read()) as Float64Array;
  };
  return { out: await read(out), lse: await read(lse) };
}
/** Values, weights and outputs are rounded once, each by 2^-9 of itself in bfloat16; scores are sums of some hundred terms in float32. */
function close(ours: Result, theirs: Result): void {
  const worst = (a: Float64Array, b: Float64Array): number =>
    a.reduce(
      (max, x, i) => (Object.is(x, b[i]) ? max : Math.max(max, Math.abs(x - b[i]!) / (1 + Math.abs(b[i]!)))),
      0,
    );
  expect(ours.out.length).toBe(theirs.out.length);
  expect(worst(ours.out, theirs.out)).toBeLessThan(2 ** -5); // NaN is not less
  expect(worst(ours.lse, theirs.lse)).toBeLessThan(2 ** -19);
}
const step: Problem = {
  dtype: "bfloat16",
  residual: "float32",
  G: 4,
  Hkv: 2,
  D: 64,
  Dv: 64,
  pageSize: 32,
  lengths: [700, 1, 257, 33],
  queries: [1, 1, 1, 1],
  poison: true,
  seed: 1,
};
const problems: readonly Problem[] = [
  step,
  { ...step, dtype: "float16", residual: "float16", D: 128, Dv: 112, pageSize: 64, seed: 2 },
  {
    ...step,
    residual: "bfloat16",
    D: 256,
    Dv: 256,
    Hkv: 1,
    pageSize: 16,
    lengths: [90, 17],
    queries: [1, 1],
    seed: 3,
  },
  {
    ...step,
    D: 40,
    Dv: 72,
    pageSize: 5,
    lengths: [33, 600],
    queries: [1, 1],
    softcap: 20,
    sinks: true,
    seed: 4,
  },
  { ...step, D: 64, Dv: 128, lengths: [96, 70], queries: [3, 4], oddLast: true, seed: 6 },
  { ...step, pageSize: 16, lengths: [96, 70], queries: [3, 4], oddLast: true, window: 33, seed: 7 },
  { ...step, D: 8, Dv: 256, pageSize: 7, lengths: [21, 22], queries: [2, 4], oddLast: true, seed: 8 },
  { ...step, pageSize: 96, G: 3, lengths: [200, 97], queries: [4, 2], window: 40, sinks: true, seed: 5 },
];

describe.skipIf(emulatedMissing !== undefined)(
  "a decode step over 4-bit pages on the emulated device",
  () => {
    test.each(problems)("equals the CPU's, %#", async (p) => {
      close(await run("cuda-emulated", p), await run("cpu", p));
    });
    test("gives a sequence the same bits alone and in a batch", async () => {
      const all = await run("cuda-emulated", step);
      const row = all.out.length / step.lengths.length;
      for (const n of [0, 2, 3]) {
        const { out } = await run("cuda-emulated", step, [n]);
        expect(out).toEqual(all.out.slice(n * row, (n + 1) * row));
      }
    });
    const shapes: fc.Arbitrary<Problem> = fc.record({
      dtype: fc.constant("bfloat16" as const),
      residual: fc.constantFrom("bfloat16" as const, "float16" as const, "float32" as const),
      G: fc.integer({ min: 1, max: 5 }),
      Hkv: fc.integer({ min: 1, max: 2 }),
      D: fc.integer({ min: 1, max: 100 }),
      Dv: fc.integer({ min: 1, max: 100 }),
      pageSize: fc.constantFrom(1, 3, 8, 16, 31, 32, 64),
      lengths: fc.tuple(fc.integer({ min: 3, max: 150 }), fc.integer({ min: 3, max: 80 })),
      queries: fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 })),
      poison: fc.boolean(),
      oddLast: fc.boolean(),
      window: fc.integer({ min: 1, max: 200 }),
      seed: fc.integer({ min: 1, max: 1000 }),
    });
    test("equals the CPU's for any shape", async () => {
      await fc.assert(
        fc.asyncProperty(shapes, async (p) => close(await run("cuda-emulated", p), await run("cpu", p))),
        { numRuns: 30 },
      );
    }, 60_000);
  },
);

describe("4-bit pages that the decode kernel reads", () => {
  const engine = getEngine("cpu");
  const of = (shape: readonly number[], dtype: "uint8" | "float32" | "float16" = "float32"): Tensor =>
    full(shape, 0, { engine, dtype });
  const pages = (pageSize: number, residual: "float32" | "float16", scales?: Tensor): QuantisedGroups => ({
    format: "int4",
    codes: of([2, 1, pageSize, 32], "uint8") as Tensor<"uint8">,
    scales: (scales ?? of([2, 1, Math.ceil(pageSize / 32), 34])) as Tensor<"float32">,
    zeros: (scales ?? of([2, 1, Math.ceil(pageSize / 32), 34])) as Tensor<"float32">,
    residual: of([1, 1, pageSize, 34], residual),
  });
  test("hold nothing that the queries' dtype cannot, and scales in 16 bytes where these are fetched so", () => {
    const rows = of([2, 1, 1, 36]);
    expect(readsInPlace(pages(32, "float32", rows), "int4", "bfloat16")).toBe(true);
    expect(readsInPlace(pages(32, "float32", rows), "int4", "float16")).toBe(false);
    expect(readsInPlace(pages(32, "float16", rows), "int4", "float16")).toBe(true);
    expect(readsInPlace(pages(32, "float32"), "int4", "bfloat16")).toBe(false);
    expect(readsInPlace(pages(15, "float32"), "int4", "bfloat16")).toBe(true);
    expect(readsInPlace(pages(32, "float32", rows), "codes", "bfloat16")).toBe(false);
  });
});
