/** The suites of the fused operations, to be registered with the test runner once for each engine. */
import { type FusedOps, getEngine } from "@heed/tensor";
import { describe, test } from "bun:test";
import fc from "fast-check";
import { attentionProblem, type AttentionProblemLimits } from "../arbitraries/attention.ts";
import { viewRecipe } from "../arbitraries/views.ts";
import { floatDTypes } from "../dtype.ts";
import type { ScoreStage } from "../oracle/attention-problem.ts";
import { checkAttention, checkAttentionScores, checkHiddenKey } from "./attention.ts";
import { checkAttentionBackward } from "./attention-backward.ts";
import { checkLinear, checkLinearBackward, linearProblem } from "./linear.ts";
import { checkNormRopeAppend, normRopeAppendProblem } from "./norm-rope-append.ts";
import { appendProblem, checkKvAppend, checkQuantisedAppend } from "./kv-append.ts";
import { checkPagedAttention, pagedProblem } from "./paged-attention.ts";
import { checkSealPages, sealProblem } from "./seal-pages.ts";
import { checkRmsNorm, checkRmsNormBackward, rmsNormProblem } from "./rms-norm.ts";
import { checkRope, ropeProblem } from "./rope.ts";
import { quantisedFormats } from "../oracle/quantised.ts";
import { poisonedEngine, type Subject } from "./subject.ts";

/** What of a suite is run. */
export interface SuiteOptions {
  /** Only these forms; default every form that the engine has: "off", composed, and "require", its kernel. */
  readonly forms?: readonly ("off" | "require")[];
  /** Problems drawn for a dtype, in the property that draws most of small ones. Default 60. */
  readonly runs?: number;
}

/** Registers `body` for every dtype and every form of an operation that the engine has and the options ask for. */
function forEachSubject(
  name: string,
  op: keyof FusedOps,
  { forms = ["off", "require"], runs = 60 }: SuiteOptions,
  body: (subject: Subject, runs: number) => void,
): void {
  const hasKernel = getEngine(name).fused[op] !== undefined;
  for (const fused of forms.filter((form) => form === "off" || hasKernel)) {
    for (const dtype of floatDTypes) {
      describe(`${op} on ${name}, ${fused === "off" ? "composed" : "kernel"}, ${dtype}`, () =>
        body({ engine: poisonedEngine(name), dtype, fused }, runs));
    }
  }
}
/** `share` of the runs, at least one. */
const some = (runs: number, share: number): { readonly numRuns: number } => ({
  numRuns: Math.ceil(runs * share),
});
/** Problems in both layouts, every operand sliced, transposed or padded. */
function placedProblem(limits?: AttentionProblemLimits) {
  return attentionProblem(limits).chain((problem) => {
    const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
    const views = fc.record({
      q: viewRecipe([B, S, Hq, D]),
      k: viewRecipe([B, Sk, Hkv, D]),
      v: viewRecipe([B, Sk, Hkv, Dv]),
      dOut: viewRecipe([B, S, Hq, Dv]),
      layout: fc.constantFrom("bshd" as const, "bhsd" as const),
    });
    return fc.record({ problem: fc.constant(problem), views });
  });
}
const tiles: AttentionProblemLimits = { maxB: 1, maxS: 40, maxSk: 150, maxHkv: 2, maxG: 2, maxD: 72 };

/** Attention forward: see {@link checkAttention}, {@link checkHiddenKey} and {@link checkAttentionScores}. */
export function attentionSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "attention", options, (subject, runs) => {
    test("out and lse agree with the oracle for every option, layout and stride", async () => {
      const property = fc.asyncProperty(placedProblem(), (p) => checkAttention(subject, p.problem, p.views));
      await fc.assert(property, some(runs, 1));
    });
    test("rows longer than a tile agree with the oracle", async () => {
      const property = fc.asyncProperty(placedProblem(tiles), (p) =>
        checkAttention(subject, p.problem, p.views),
      );
      await fc.assert(property, some(runs, 1 / 10));
    });
    test("a NaN or infinity in a key or value changes no bit of a row that does not see it", async () => {
      const hidden = fc.record({
        key: fc.nat({ max: 20 }),
        where: fc.constantFrom("k" as const, "v" as const),
        value: fc.constantFrom(NaN, Infinity, -Infinity),
      });
      const property = fc.asyncProperty(attentionProblem(), hidden, (p, h) => checkHiddenKey(subject, p, h));
      await fc.assert(property, some(runs, 1 / 2));
    });
    if (subject.fused !== "off") return;
    for (const stage of ["raw", "softcapped", "masked", "probabilities"] satisfies ScoreStage[]) {
      test(`the scores at stage "${stage}" agree with the oracle`, async () => {
        const property = fc.asyncProperty(placedProblem(), (p) =>
          checkAttentionScores(subject, p.problem, stage, p.views),
        );
        await fc.assert(property, some(runs, 1 / 4));
      });
    }
  });
}
/** Attention backward: see {@link checkAttentionBackward}. */
export function attentionBackwardSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "attentionBackward", options, (subject, runs) => {
    test("gradients agree with the oracle for every option, layout and stride", async () => {
      const property = fc.asyncProperty(placedProblem(), (p) =>
        checkAttentionBackward(subject, p.problem, p.views),
      );
      await fc.assert(property, some(runs, 1));
    });
    test("gradients of rows longer than a tile agree with the oracle", async () => {
      const property = fc.asyncProperty(placedProblem(tiles), (p) =>
        checkAttentionBackward(subject, p.problem, p.views),
      );
      await fc.assert(property, some(runs, 1 / 10));
    });
  });
}
/** Attention over pages: see {@link checkPagedAttention}. */
export function pagedAttentionSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "pagedAttention", options, (subject, runs) => {
    test("any mix of prefill and decode agrees with the oracle, unused slots poisoned", async () => {
      const property = fc.asyncProperty(pagedProblem(), (p) => checkPagedAttention(subject, p));
      await fc.assert(property, some(runs, 1 / 2));
    });
    test("long sequences agree with the oracle", async () => {
      const long = { maxSequences: 3, maxLength: 300, maxQueries: 20, pageSizes: [16, 64], maxD: 72 };
      const property = fc.asyncProperty(pagedProblem(long), (p) => checkPagedAttention(subject, p));
      await fc.assert(property, some(runs, 1 / 15));
    });
    for (const format of quantisedFormats) {
      test(`${format} pages agree with the oracle on the numbers they stand for, unused slots poisoned`, async () => {
        const property = fc.asyncProperty(pagedProblem(), (p) => checkPagedAttention(subject, p, format));
        await fc.assert(property, some(runs, 1 / 2));
      });
      test(`long sequences of ${format} pages agree with the oracle`, async () => {
        // Pages of 96 and 100 tokens begin within blocks of 64. Multiples of 32 tokens are groups of their own to "int4".
        const pageSizes = format === "int4" ? [32, 64, 96] : [16, 64, 100];
        const long = { maxSequences: 2, maxLength: 300, maxQueries: 20, pageSizes, maxD: 72 };
        const property = fc.asyncProperty(pagedProblem(long), (p) => checkPagedAttention(subject, p, format));
        await fc.assert(property, some(runs, format === "int4" ? 1 / 6 : 1 / 15));
      });
    }
    if (subject.dtype === "float64") return;
    test("pages of every dtype but float64 serve these queries", async () => {
      const dtypes = fc.constantFrom("float32" as const, "float16" as const, "bfloat16" as const);
      const property = fc.asyncProperty(pagedProblem(), dtypes, (p, pages) =>
        checkPagedAttention(subject, p, pages),
      );
      await fc.assert(property, some(runs, 1 / 4));
    });
  });
}
/** Writing rows into pages: see {@link checkKvAppend} and {@link checkQuantisedAppend}. */
export function kvAppendSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "kvAppend", options, (subject, runs) => {
    test("the named rows are written, converted to the pages' dtype, and no others", async () => {
      const property = fc.asyncProperty(appendProblem(), (p) => checkKvAppend(subject, p));
      await fc.assert(property, some(runs, 1));
    });
    test("rows become the oracle's codes with a scale each, NaN where a number is not finite", async () => {
      const formats = fc.constantFrom("int8" as const, "float8e4m3" as const);
      const property = fc.asyncProperty(appendProblem(), formats, (p, format) =>
        checkQuantisedAppend(subject, p, format),
      );
      await fc.assert(property, some(runs, 1));
    });
  });
}
/** Encoding full pages in 4 bits: see {@link checkSealPages}. */
export function sealPagesSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "sealPages", options, (subject, runs) => {
    if (subject.dtype === "float64") return;
    test("the named pages hold the oracle's codes, scales and zeros, and no others", async () => {
      const property = fc.asyncProperty(sealProblem(), (p) => checkSealPages(subject, p));
      await fc.assert(property, some(runs, 1));
    });
  });
}
/** Norm, rotation and append in one: see {@link checkNormRopeAppend}. */
export function normRopeAppendSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "normRopeAppend", options, (subject, runs) => {
    test("queries and pages are those of its parts, bit for bit, and agree with the oracle", async () => {
      const property = fc.asyncProperty(normRopeAppendProblem(), (p) => checkNormRopeAppend(subject, p));
      await fc.assert(property, some(runs, 2));
    });
    test("heads longer than a block of the kernels", async () => {
      const property = fc.asyncProperty(normRopeAppendProblem(1300), (p) => checkNormRopeAppend(subject, p));
      await fc.assert(property, some(runs, 1 / 10));
    });
  });
}
/** Rotary embedding: see {@link checkRope}. */
export function ropeSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "rope", options, (subject, runs) => {
    test("rotations and their gradients agree with the oracle: pairings, partial widths, positions, strides", async () => {
      const property = fc.asyncProperty(ropeProblem(), (p) => checkRope(subject, p));
      await fc.assert(property, some(runs, 2));
    });
  });
}
/** RMS norm: see {@link checkRmsNorm} and {@link checkRmsNormBackward}. */
export function rmsNormSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "rmsNorm", options, (subject, runs) => {
    test("the norm agrees with the oracle: axes, weights of every float dtype, unit offset, strides", async () => {
      const property = fc.asyncProperty(rmsNormProblem(), (p) => checkRmsNorm(subject, p));
      await fc.assert(property, some(runs, 2));
    });
  });
  forEachSubject(name, "rmsNormBackward", options, (subject, runs) => {
    test("its gradients agree with the oracle", async () => {
      const property = fc.asyncProperty(rmsNormProblem(), (p) => checkRmsNormBackward(subject, p));
      await fc.assert(property, some(runs, 2));
    });
  });
}
/** Linear maps: see {@link checkLinear} and {@link checkLinearBackward}. */
export function linearSuite(name: string, options: SuiteOptions = {}): void {
  forEachSubject(name, "linear", options, (subject, runs) => {
    test("x @ weight^T + bias agrees with the oracle, for every rank and stride", async () => {
      const property = fc.asyncProperty(linearProblem(), (p) => checkLinear(subject, p));
      await fc.assert(property, some(runs, 1));
    });
    test("products larger than a tile agree with the oracle", async () => {
      const property = fc.asyncProperty(linearProblem(140), (p) => checkLinear(subject, p));
      await fc.assert(property, some(runs, 1 / 10));
    });
    if (subject.dtype === "float32") {
      test("a float32 x takes 16-bit weights as they are", async () => {
        const dtypes = fc.constantFrom("float16" as const, "bfloat16" as const);
        const property = fc.asyncProperty(linearProblem(), dtypes, (p, weight) =>
          checkLinear(subject, p, weight),
        );
        await fc.assert(property, some(runs, 1 / 2));
      });
    }
    if (subject.fused !== "off") return;
    test("its gradients agree with the oracle", async () => {
      const property = fc.asyncProperty(linearProblem(), (p) => checkLinearBackward(subject, p));
      await fc.assert(property, some(runs, 1));
    });
  });
}
