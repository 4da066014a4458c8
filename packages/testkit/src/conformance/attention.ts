/** Attention, forward and backward, of any problem of {@link attentionProblem}: kernel and composed form by the oracle. */
import { attentionVjp, attentionWithLse, tensor } from "@heed/tensor";
import type { AttentionOptions, Engine, Tensor } from "@heed/tensor";
import { attentionData } from "../arbitraries/attention.ts";
import type { AttentionData, AttentionProblem } from "../arbitraries/attention.ts";
import type { ViewRecipe } from "../arbitraries/views.ts";
import { roundArray } from "../dtype.ts";
import { isVisible } from "../oracle/attention-problem.ts";
import type { AttentionOracleOptions } from "../oracle/attention-problem.ts";
import { attentionBackwardOracle, attentionOracle } from "../oracle/attention.ts";
import { broadcastMask, sumToMaskShape } from "../oracle/mask.ts";
import { assertMeaning, largest, place, placeInt32, placeView, results, wideOf } from "./subject.ts";
import type { Subject } from "./subject.ts";

/** Strided views for q [B, S, Hq, D], k [B, Sk, Hkv, D] and v [B, Sk, Hkv, Dv]; contiguous by default. */
export interface AttentionViews {
  readonly q?: ViewRecipe | undefined;
  readonly k?: ViewRecipe | undefined;
  readonly v?: ViewRecipe | undefined;
}

/** The problem's values as `dtype` holds them, which are what engine and oracle both get. */
function rounded(problem: AttentionProblem, { dtype }: Subject): AttentionData {
  const data = attentionData(problem);
  const round = (x: Float64Array): Float64Array => roundArray(dtype, x);
  const mask = data.mask && { ...data.mask, data: round(data.mask.data) };
  const sinks = data.sinks && round(data.sinks);
  const alibiSlopes = data.alibiSlopes && round(data.alibiSlopes);
  const options: AttentionOracleOptions = {
    ...data.options,
    sinks,
    alibiSlopes,
    mask: mask && broadcastMask(mask.kind, mask.data, mask.shape, problem.dims),
  };
  const { q, k, v, dOut } = data;
  return {
    q: round(q),
    k: round(k),
    v: round(v),
    dOut: round(dOut),
    options,
    ...(mask && { mask }),
    ...(sinks && { sinks }),
    ...(alibiSlopes && { alibiSlopes }),
  };
}

/** Rows [B, Sk, Hkv, width] with NaN wherever no query of the key head's group may look. */
function poisonUnseen(rows: Float64Array, width: number, options: AttentionOracleOptions): Float64Array {
  const { B, S, Sk, Hq, Hkv } = options.dims;
  const G = Hq / Hkv;
  const poisoned = rows.slice();
  for (let b = 0; b < B; b++)
    for (let j = 0; j < Sk; j++)
      for (let kv = 0; kv < Hkv; kv++) {
        const isSeen = Array.from({ length: G * S }, (_, n) => n).some((n) =>
          isVisible(options, b, kv * G + Math.floor(n / S), n % S, j),
        );
        const row = (b * Sk + j) * Hkv + kv;
        if (!isSeen) poisoned.fill(NaN, row * width, (row + 1) * width);
      }
  return poisoned;
}

function maskTensor(mask: AttentionData["mask"], { engine, dtype }: Subject): Tensor | undefined {
  if (mask?.kind === "boolean")
    return tensor(Uint8Array.from(mask.data), mask.shape, { dtype: "bool", engine });
  return mask && place(engine, dtype, mask.data, mask.shape);
}

function optionsOf(problem: AttentionProblem, data: AttentionData, subject: Subject): AttentionOptions {
  const { engine, dtype } = subject;
  const { scale, softcap, isCausal, window, queryOffset, kvLengths } = problem;
  const perHead = (x: Float64Array | undefined): Tensor | undefined =>
    x && place(engine, dtype, x, [x.length]);
  return {
    scale,
    softcap,
    isCausal,
    window,
    queryOffset: typeof queryOffset === "object" ? placeInt32(engine, queryOffset) : queryOffset,
    kvLengths: kvLengths && placeInt32(engine, kvLengths),
    attnMask: maskTensor(data.mask, subject),
    alibiSlopes: perHead(data.alibiSlopes),
    sinks: perHead(data.sinks),
  };
}

function operands(
  problem: AttentionProblem,
  data: AttentionData,
  { engine, dtype }: Subject,
  views: AttentionViews,
) {
  const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
  const put = (x: Float64Array, shape: readonly number[], recipe?: ViewRecipe) =>
    recipe ? placeView(engine, dtype, x, recipe) : place(engine, dtype, x, shape);
  const k = poisonUnseen(data.k, D, data.options);
  const v = poisonUnseen(data.v, Dv, data.options);
  return [
    put(data.q, [B, S, Hq, D], views.q),
    put(k, [B, Sk, Hkv, D], views.k),
    put(v, [B, Sk, Hkv, Dv], views.v),
  ] as const;
}

/** An error in a score of size s is of order s, and the softmax passes it on. */
function conditioningOf(data: AttentionData): number {
  const { scores } = attentionOracle(data.q, data.k, data.v, { ...data.options, scores: "masked" });
  return Math.max(1, largest(scores!));
}

/**
 * Output and log-sum-exp of a problem, with NaN in every key and value that no query sees. Throws a TestkitError with code
 * "mismatch", or what the library throws.
 */
export async function checkAttention(
  subject: Subject,
  problem: AttentionProblem,
  views: AttentionViews = {},
): Promise<void> {
  const { dtype } = subject;
  const { B, S, Hq, Dv } = problem.dims;
  const data = rounded(problem, subject);
  const run = (fused: Subject["fused"]) =>
    results(() => {
      const { output, lse } = attentionWithLse(...operands(problem, data, subject, views), {
        ...optionsOf(problem, data, subject),
        fused,
      });
      return { output, lse };
    });
  const [fused, composed] = [await run(subject.fused), await run("off")];
  const { out, lse } = attentionOracle(data.q, data.k, data.v, data.options);
  const conditioning = conditioningOf(data);
  assertMeaning({
    name: "output",
    fused: fused.output,
    composed: composed.output,
    oracle: out,
    dtype,
    shape: [B, S, Hq, Dv],
    termScale: largest(data.v),
    conditioning,
  });
  assertMeaning({
    name: "lse",
    fused: fused.lse,
    composed: composed.lse,
    oracle: lse,
    dtype: wideOf(dtype),
    shape: [B, Hq, S],
    termScale: conditioning,
  });
}

/** Gradients of a problem, for a random upstream gradient; poisoned and judged as in {@link checkAttention}. */
export async function checkAttentionBackward(
  subject: Subject,
  problem: AttentionProblem,
  views: AttentionViews = {},
): Promise<void> {
  const { engine, dtype } = subject;
  const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
  const data = rounded(problem, subject);
  const isBias = data.mask?.kind === "additive";
  const run = (fused: Subject["fused"]) =>
    results(() => {
      const options = { ...optionsOf(problem, data, subject), fused, attnMaskGradient: isBias };
      const { backward } = attentionVjp(...operands(problem, data, subject, views), options);
      const { q, k, v, attnMask, sinks } = backward(place(engine, dtype, data.dOut, [B, S, Hq, Dv]));
      return { dq: q, dk: k, dv: v, dMask: attnMask, dSinks: sinks };
    });
  const [fused, composed] = [await run(subject.fused), await run("off")];
  const oracle = attentionBackwardOracle(data.q, data.k, data.v, data.dOut, data.options);
  const conditioning = conditioningOf(data);
  const { scale = 1 / Math.sqrt(D) } = problem;
  // dp is a sum of Dv products; what it is multiplied with below gives the size of each gradient's terms.
  const dp = Math.sqrt(Dv) * largest(data.dOut) * largest(data.v);
  const judge = (
    name: keyof typeof fused,
    expected: Float64Array,
    shape: readonly number[],
    termScale: number,
    of = dtype,
  ): void =>
    assertMeaning({
      name,
      fused: fused[name],
      composed: composed[name],
      oracle: expected,
      dtype: of,
      shape,
      termScale,
      conditioning,
    });
  judge("dq", oracle.dq, [B, S, Hq, D], Math.abs(scale) * dp * largest(data.k));
  judge("dk", oracle.dk, [B, Sk, Hkv, D], Math.abs(scale) * dp * largest(data.q));
  judge("dv", oracle.dv, [B, Sk, Hkv, Dv], largest(data.dOut));
  if (data.sinks) judge("dSinks", oracle.dSinks, [Hq], dp, dtype);
  if (isBias)
    judge("dMask", sumToMaskShape(oracle.dBias, data.mask!.shape, problem.dims), data.mask!.shape, dp, dtype);
}
