/** Sink tokens on the emulated device where the suites' problems are too small: tiles between sinks and window, parts of long sequences. */
import type { AttentionDims, AttentionProblem } from "@heed/testkit";
import { checkAttention, checkHiddenKey } from "@heed/testkit/conformance/attention";
import { checkAttentionBackward } from "@heed/testkit/conformance/attention-backward";
import { poisonedEngine, type Subject } from "@heed/testkit/conformance/subject";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import "../../src/index.ts";
import { emulatedMissing, ENGINE } from "../support.ts";
import { byOracle, runPages, type SinkProblem, type Storage } from "./sink-pages.ts";

const subject = (dtype: Subject["dtype"]): Subject => ({
  engine: poisonedEngine(ENGINE),
  dtype,
  fused: "require",
});
const dims = (over: Partial<AttentionDims>): AttentionDims => {
  const all = { B: 2, S: 30, Sk: 260, Hkv: 1, Hq: 2, D: 64, ...over };
  return { Dv: over.D ?? 64, ...all };
};
/** Keys 5 .. 189 lie between the sinks of the first sequence and the window of its last query. */
const problem = (over: Partial<AttentionDims>, rules: Partial<AttentionProblem> = {}): AttentionProblem => ({
  dims: dims(over),
  isCausal: true,
  window: { left: 40 },
  sinkTokens: 5,
  kvLengths: [dims(over).Sk, Math.ceil(dims(over).Sk * 0.6)],
  alibi: false,
  sinks: true,
  seed: 5,
  ...rules,
});
const SIZES: readonly Partial<AttentionDims>[] = [
  { D: 64 },
  { D: 80, Dv: 96 },
  { D: 128 },
  { D: 192, Dv: 128, S: 12 },
  { D: 256, S: 12 },
  { D: 320, Dv: 288, S: 6, Sk: 120 },
];

describe.skipIf(emulatedMissing !== undefined)("sink tokens", () => {
  describe.each(["bfloat16", "float16", "float32", "float64"] as const)("in %s", (dtype) => {
    test.each(SIZES.map((size) => [JSON.stringify(size), size] as const))(
      "agree with the oracle where tiles lie between them and the window, head sizes of %s",
      async (_, size) => {
        for (const sinkTokens of [5, 70]) {
          const S = Math.min(size.S ?? 30, 12);
          await checkAttention(subject(dtype), problem(size, { sinkTokens }));
          await checkAttentionBackward(subject(dtype), problem({ ...size, S }, { sinkTokens }));
        }
      },
    );
  });
  const number = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max });
  const dense = fc.record({
    dtype: fc.constantFrom("bfloat16" as const, "float16" as const, "float32" as const),
    S: number(1, 70),
    Sk: number(1, 220),
    offset: fc.option(number(0, 200), { nil: undefined }),
    left: number(0, 90),
    right: fc.option(number(0, 60), { nil: undefined }),
    isCausal: fc.boolean(),
    sinkTokens: fc.oneof(number(0, 12), number(1, 230), fc.constant(Number.MAX_SAFE_INTEGER)),
    masked: fc.boolean(),
    lengths: fc.tuple(number(0, 220), number(0, 220)),
    seed: number(1, 1000),
  });
  type Dense = typeof dense extends fc.Arbitrary<infer P> ? P : never;
  const drawn = ({ S, Sk, offset, left, right, masked, lengths, ...p }: Dense): AttentionProblem => ({
    ...problem({ S, Sk, D: 16, Dv: 24, Hq: 2 }),
    ...p,
    window: right === undefined ? { left } : { left, right },
    queryOffset: offset,
    kvLengths: lengths.map((length) => Math.min(length, Sk)),
    mask: masked ? { kind: "additive", shape: [1, 1, S, Sk] } : undefined,
  });
  test("agree with the oracle at any length, window and position", async () => {
    await fc.assert(
      fc.asyncProperty(dense, (p) => checkAttention(subject(p.dtype), drawn(p))),
      { numRuns: 60 },
    );
  }, 120_000);
  test("have the oracle's gradients at any length, window and position", async () => {
    await fc.assert(
      fc.asyncProperty(dense, (p) => checkAttentionBackward(subject(p.dtype), drawn(p))),
      { numRuns: 60 },
    );
  }, 120_000);
  test.each([
    [1, 1],
    [1, 260],
    [30, 1],
  ] as const)("have a gradient of their mask, of %p queries and %p keys", async (rows, keys) => {
    const mask = { kind: "additive", shape: [1, 1, rows, keys] } as const;
    for (const dtype of ["bfloat16", "float64"] as const)
      await checkAttentionBackward(subject(dtype), problem({ D: 8 }, { mask }));
  });
  test.each(["bfloat16", "float16", "float32"] as const)(
    "show a NaN to the rows that see them and to no others, %s",
    async (dtype) => {
      for (const [S, key] of [
        [150, 3],
        [150, 20],
        [20, 3],
        [20, 70],
      ] as const)
        for (const value of [NaN, Infinity])
          for (const where of ["k", "v"] as const)
            await checkHiddenKey(
              subject(dtype),
              problem({ S, Sk: 150, D: 16, B: 1 }, { sinkTokens: 9, kvLengths: undefined }),
              { key, where, value },
            );
    },
  );
});

/** Both round an output once, ours the weights too, by 2^-9 of values that seldom exceed 4; 4-bit values are rounded as well. */
function close(
  ours: Awaited<ReturnType<typeof runPages>>,
  theirs: ReturnType<typeof byOracle>,
  bound: number,
): void {
  const worst = (a: Float64Array, b: Float64Array): number =>
    a.reduce(
      (max, x, i) => (Object.is(x, b[i]) ? max : Math.max(max, Math.abs(x - b[i]!) / (1 + Math.abs(b[i]!)))),
      0,
    );
  expect(ours.out.length).toBe(theirs.out.length);
  expect(worst(ours.out, theirs.out)).toBeLessThan(bound); // NaN is not less
  expect(worst(ours.lse, theirs.lse)).toBeLessThan(1e-4);
}
const check = async (p: SinkProblem): Promise<void> =>
  close(await runPages(p), byOracle(p), p.storage === "int4" ? 2 ** -5 : 2 ** -6);

describe.skipIf(emulatedMissing !== undefined)("sink tokens in pages", () => {
  const steps = (...lengths: readonly number[]): SinkProblem["sequences"] =>
    lengths.map((length) => ({ length, queries: 1 }));
  /** The part of a sequence is 256 tokens, so that these have 1 to 12, of which the first and the last have keys to see. */
  const step: SinkProblem = {
    dtype: "bfloat16",
    storage: "float",
    G: 4,
    Hkv: 2,
    D: 64,
    Dv: 64,
    pageSize: 32,
    sequences: steps(1500, 1, 257, 3000),
    left: 300,
    sinkTokens: 4,
    seed: 1,
  };
  const latent: SinkProblem = {
    ...step,
    storage: "latent",
    G: 20,
    Hkv: 1,
    D: 320,
    Dv: 256,
    pageSize: 16,
    sequences: steps(40, 1900, 7),
    seed: 4,
  };
  const chunk = (...lengths: readonly number[]): SinkProblem["sequences"] =>
    lengths.map((length) => ({ length, queries: 3 }));
  const problems: readonly SinkProblem[] = [
    step,
    { ...step, dtype: "float16", D: 128, Dv: 112, left: 63, sinkTokens: 70 },
    { ...step, left: 0, sinkTokens: 257 },
    { ...step, left: 700, sinkTokens: 600 },
    { ...step, storage: "int8", left: 63 },
    { ...step, storage: "float8e4m3", dtype: "float16", sequences: steps(900, 300), sinkTokens: 17 },
    { ...step, storage: "int4", sequences: steps(900, 70), left: 63, sinkTokens: 20 },
    { ...step, storage: "int4", sequences: chunk(900, 70), left: 63, pageSize: 16 },
    { ...step, storage: "float32", sequences: steps(400, 30), D: 24, Dv: 20, left: 40 },
    { ...step, sequences: chunk(900, 70), left: 40 },
    {
      ...step,
      sequences: [
        { length: 300, queries: 40 },
        { length: 90, queries: 90 },
      ],
      left: 40,
      sinkTokens: 9,
    },
    latent,
    { ...latent, left: 40, sinkTokens: 520 },
    { ...latent, dtype: "float16", G: 24, sequences: chunk(300, 5), left: 20, sinkTokens: 40 },
  ];
  test.each(problems)("agree with the oracle, and what nobody sees is not read, %#", check);
  const storages: readonly Storage[] = ["float", "float32", "int8", "float8e4m3", "int4", "latent"];
  const length = fc.oneof(fc.integer({ min: 3, max: 150 }), fc.integer({ min: 3, max: 1100 }));
  const sequence = fc.record({ length, queries: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 3 })) });
  const any: fc.Arbitrary<SinkProblem> = fc.record({
    dtype: fc.constant("bfloat16" as const),
    storage: fc.constantFrom(...storages),
    G: fc.integer({ min: 1, max: 5 }),
    Hkv: fc.integer({ min: 1, max: 2 }),
    D: fc.constantFrom(24, 40),
    Dv: fc.constantFrom(16, 24),
    pageSize: fc.constantFrom(1, 7, 8, 16, 32, 64),
    sequences: fc.array(sequence, { minLength: 1, maxLength: 2 }),
    left: fc.oneof(fc.integer({ min: 0, max: 70 }), fc.integer({ min: 0, max: 600 })),
    sinkTokens: fc.oneof(fc.integer({ min: 0, max: 12 }), fc.integer({ min: 0, max: 600 })),
    seed: fc.integer({ min: 1, max: 1000 }),
  });
  test("agree with the oracle in any shape, and what nobody sees is not read", async () => {
    await fc.assert(fc.asyncProperty(any, check), { numRuns: 60 });
  }, 120_000);
  const few = { ...step, sequences: chunk(300, 6), left: 20 };
  test.each([
    few,
    { ...few, storage: "int8" as const },
    { ...few, storage: "int4" as const },
    { ...few, storage: "float32" as const },
    { ...few, sequences: [{ length: 150, queries: 120 }] },
    { ...latent, sequences: chunk(300, 6), left: 20 },
  ])("with a value that is not finite reach the rows that see them, and no others, %#", async (p) => {
    // Of the sequence of 6, whose queries are 3 .. 5, one does not see token 4.
    for (const token of [1, 4])
      for (const value of [NaN, Infinity]) {
        const odd = { ...p, sinkTokens: 5, odd: { token, value } };
        const [{ out }, expected] = [await runPages(odd), byOracle(odd).out];
        expect(out.map((x) => +Number.isFinite(x))).toEqual(expected.map((x) => +Number.isFinite(x)));
      }
  });
  test.each([step, { ...latent, sinkTokens: 520 }])(
    "give a sequence the same bits alone and in a batch, %#",
    async (p) => {
      const { out } = await runPages(p);
      const row = out.length / p.sequences.length;
      for (const only of p.sequences.keys())
        expect((await runPages(p, { only })).out).toEqual(out.slice(only * row, (only + 1) * row));
    },
  );
  test.each([step, latent])("that reach to the window give the bits of none, %#", async (p) => {
    const all = await runPages({ ...p, sinkTokens: Number.MAX_SAFE_INTEGER });
    const open = await runPages({ ...p, left: undefined, sinkTokens: 0 });
    expect(all.out).toEqual(open.out);
  });
});
