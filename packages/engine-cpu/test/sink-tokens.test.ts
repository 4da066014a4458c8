/** Sink tokens where the suites' problems are too small: blocks of keys between the sinks and the window, in every storage of pages. */
import { createRng, type PagedProblem } from "@heed/testkit";
import { checkPagedAttention } from "@heed/testkit/conformance/paged-attention";
import { poisonedEngine } from "@heed/testkit/conformance/subject";
import { getEngine } from "@heed/tensor";
import { afterAll, beforeAll, describe, test } from "bun:test";
import fc from "fast-check";
import { availableIsas, isa, selectIsa } from "../src/index.ts";

const hasKernel = getEngine("cpu").fused.pagedAttention !== undefined;
const inUse = hasKernel ? isa() : undefined;

interface Sequence {
  readonly length: number;
  readonly queries: number;
}
const running = (counts: readonly number[]): Int32Array =>
  Int32Array.from({ length: counts.length + 1 }, (_, n) => counts.slice(0, n).reduce((a, b) => a + b, 0));

/** Sequences whose last tokens are queries, their pages dealt in any order. */
function tableOf(sequences: readonly Sequence[], pageSize: number, seed: number): PagedProblem {
  const indptr = running(sequences.map(({ length }) => Math.ceil(length / pageSize)));
  const queryIndptr = running(sequences.map(({ queries }) => queries));
  const numPages = indptr.at(-1)!;
  return {
    pageSize,
    queryIndptr,
    indptr,
    indices: Int32Array.from(createRng(seed).permutation(numPages)),
    lengths: Int32Array.from(sequences, ({ length }) => length),
    numPages,
    T: queryIndptr.at(-1)!,
    seed,
  };
}
const sequence = fc
  .record({ length: fc.integer({ min: 1, max: 420 }), queries: fc.constantFrom(1, 1, 3, 70) })
  .map(({ length, queries }) => ({ length, queries: Math.min(length, queries) }));
const problem = fc.record({
  sequences: fc.tuple(sequence, sequence),
  pageSize: fc.constantFrom(16, 32, 64, 128),
  left: fc.constantFrom(0, 20, 63, 200),
  sinkTokens: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 200 })),
  G: fc.constantFrom(1, 4),
  seed: fc.nat({ max: 0xffff }),
});

describe.each(hasKernel ? availableIsas() : [])("sink tokens over pages, %s", (level) => {
  beforeAll(() => selectIsa(level));
  afterAll(() => selectIsa(inUse));
  test.each(["float32", "bfloat16", "int8", "float8e4m3", "int4"] as const)(
    "of %s agree with the oracle at any length, window and number",
    async (storage) => {
      const subject = { engine: poisonedEngine("cpu"), dtype: "float32", fused: "require" } as const;
      const check = ({
        sequences,
        pageSize,
        left,
        sinkTokens,
        G,
        seed,
      }: typeof problem extends fc.Arbitrary<infer P> ? P : never) =>
        checkPagedAttention(
          subject,
          {
            table: tableOf(sequences, pageSize, seed),
            Hkv: 2,
            G,
            D: 32,
            Dv: 32,
            options: { isCausal: true, window: { left }, sinkTokens },
            alibi: false,
            sinks: seed % 2 === 0,
          },
          storage,
        );
      await fc.assert(fc.asyncProperty(problem, check), { numRuns: 6 });
    },
  );
});
