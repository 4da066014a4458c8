/** Every kind of layer, in every dtype: tokens in any split, through any cache, give what one pass gives. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import { fill, type FloatDType, getEngine, scope } from "@heed/tensor";
import { floatView, assertClose, conformanceTolerance, createRng, roundArray } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc, { type Arbitrary } from "fast-check";
import { layerBuilders } from "../src/index.ts";
import { engines } from "./engines.ts";
import { FAMILIES, type Family, type Subject } from "./support/families.ts";
import { upload } from "./support/problem.ts";

const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;
/** New tokens of each sequence, step by step. */
type Steps = readonly (readonly number[])[];
const steps: Arbitrary<Steps> = fc.integer({ min: 1, max: 3 }).chain((B) =>
  fc.array(fc.array(fc.constantFrom(0, 1, 1, 1, 2, 5), { minLength: B, maxLength: B }), {
    minLength: 1,
    maxLength: 6,
  }),
);
const pageSizes = fc.constantFrom(1, 4, 16);
const lengthsOf = (all: Steps): number[] =>
  all[0]!.map((_, b) => all.reduce((n, counts) => n + counts[b]!, 0));

describe.each(engines)("in any split on %s", (name) => {
  const engine = getEngine(name);
  const rowsOf = (n: number, width: number, seed: number, dtype: FloatDType): Float64Array =>
    roundArray(dtype, createRng(seed).normalArray(n * width));

  /** Each sequence's outputs, its rows going through pages that hold NaN, several sequences to a step. */
  function throughPages(
    { width, outWidth, layout, paged }: Subject,
    inputs: readonly Float64Array[],
    all: Steps,
    pageSize: number,
    dtype: FloatDType,
  ): number[][] {
    const maxPages = lengthsOf(all).reduce((n, length) => n + Math.ceil(length / pageSize), 1);
    const cache = new KvCache({ layers: 1, ...layout, pageSize, maxPages, dtype, engine });
    using nothing = cache.reserve([]);
    for (const pages of ["kPages", "vPages"] as const) fill(floatView(nothing.view(0))[pages], NaN);
    const sequences = inputs.map(() => cache.open());
    const found = inputs.map((): number[] => []);
    for (const counts of all) {
      const ragged = counts.flatMap((n, b) => {
        const at = sequences[b]!.length * width;
        return [...inputs[b]!.subarray(at, at + n * width)];
      });
      const x = upload(Float64Array.from(ragged), [ragged.length / width, width], dtype, engine);
      using step = cache.reserve(counts.map((tokens, b) => ({ sequence: sequences[b]!, tokens })));
      const y = paged(x, step);
      step.commit();
      let row = 0;
      counts.forEach((n, b) => found[b]!.push(...y.subarray(row * outWidth, (row += n) * outWidth)));
    }
    cache.check();
    nothing[Symbol.dispose]();
    cache[Symbol.dispose]();
    return found;
  }
  /** The same with contiguous keys and values, in padded batches whose padding is NaN. */
  function throughPast(
    { width, outWidth, contiguous }: Subject,
    inputs: readonly Float64Array[],
    all: Steps,
    dtype: FloatDType,
  ): number[][] {
    const advance = contiguous!(inputs.length);
    const starts = inputs.map(() => 0);
    const found = inputs.map((): number[] => []);
    for (const counts of all) {
      const most = Math.max(...counts);
      const padded = new Float64Array(inputs.length * most * width).fill(NaN);
      counts.forEach((n, b) => {
        const at = starts[b]! * width;
        padded.set(inputs[b]!.subarray(at, at + n * width), b * most * width);
      });
      const y = advance(upload(padded, [inputs.length, most, width], dtype, engine), counts, [...starts]);
      counts.forEach((n, b) => {
        found[b]!.push(...y.subarray(b * most * outWidth, (b * most + n) * outWidth));
        starts[b]! += n;
      });
    }
    return found;
  }
  /**
   * One pass of each sequence. The two forms of latent attention round 16 bits in different places, so float64 on the
   * same rounded values judges it; elsewhere it is a pass in the same dtype.
   */
  function onePasses(
    family: Family,
    description: object,
    inputs: readonly Float64Array[],
    dtype: FloatDType,
  ): Float64Array[] {
    const isLatent = family === FAMILIES["MultiHeadLatentAttention"];
    const computed = isLatent ? "float64" : dtype;
    const subject = family.build(description, computed, engine, dtype);
    return inputs.map((rows) =>
      subject.onePass(upload(rows, [1, rows.length / subject.width, subject.width], computed, engine)),
    );
  }
  function compare(found: number[][], expected: Float64Array[], dtype: FloatDType): void {
    const tolerance = conformanceTolerance(dtype, "forward");
    expected.forEach((y, b) =>
      assertClose(found[b]!, y, { rel: tolerance, abs: tolerance, name: `sequence ${b}` }),
    );
  }
  const routes: Readonly<Record<string, (subject: Subject) => boolean>> = {
    "a paged cache": () => true,
    "contiguous keys and values": ({ contiguous }) => contiguous !== undefined,
  };
  for (const [operation, family] of Object.entries(FAMILIES)) {
    for (const [route, has] of Object.entries(routes)) {
      if (!has(family.build(family.open, "float64", engine))) continue;
      test.each(DTYPES)(
        `sequences of different lengths through ${route} equal a pass of each: ${operation}, %s`,
        (dtype) => {
          const cases = fc.record({ description: family.descriptions, all: steps, pageSize: pageSizes });
          fc.assert(
            fc.property(cases, ({ description, all, pageSize }) =>
              scope(() => {
                const subject = family.build(description, dtype, engine);
                const inputs = lengthsOf(all).map((n, b) => rowsOf(n, subject.width, 100 + b, dtype));
                const found =
                  route === "a paged cache"
                    ? throughPages(subject, inputs, all, pageSize, dtype)
                    : throughPast(subject, inputs, all, dtype);
                compare(found, onePasses(family, description, inputs, dtype), dtype);
              }),
            ),
            { numRuns: 15 },
          );
        },
      );
    }
    /** The last of 8 tokens, decoded after a prefill of 5 and two single ones, for a first token times `factor`. */
    const lastOf = (description: object, dtype: FloatDType, factor: number): number[][] =>
      scope(() => {
        const subject = family.build(description, dtype, engine);
        const rows = rowsOf(8, subject.width, 9, dtype);
        rows.subarray(0, subject.width).forEach((x, i) => (rows[i] = x * factor));
        const all = [[5], [1], [1], [1]];
        const found = throughPages(subject, [rows], all, 4, dtype);
        if (subject.contiguous !== undefined) found.push(...throughPast(subject, [rows], all, dtype));
        return found.map((y) => y.slice(-subject.outWidth));
      });
    test.each(DTYPES)(`an early token changes the last output: ${operation}, %s`, (dtype) => {
      const [plain, changed] = [1, -2].map((factor) => lastOf(family.open, dtype, factor));
      plain!.forEach((y, route) => {
        const most = Math.max(...y.map((v, i) => Math.abs(v - changed![route]![i]!)));
        expect(most).toBeGreaterThan(2 * conformanceTolerance(dtype, "forward"));
      });
    });
    const { windowed } = family;
    if (windowed !== undefined)
      test.each(DTYPES)(`no bit of it once the window has passed: ${operation}, %s`, (dtype) => {
        expect(lastOf(windowed, dtype, -2)).toEqual(lastOf(windowed, dtype, 1));
      });
  }
  test("these are all layers that attend", () => {
    const others = ["Linear", "RMSNorm"];
    expect(Object.keys(FAMILIES).toSorted()).toEqual(
      [...layerBuilders.keys()].filter((operation) => !others.includes(operation)).toSorted(),
    );
  });
});
