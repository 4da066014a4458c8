/** A problem of {@link attentionProblem} placed on an engine: operands in any dtype, order of axes and strides. */
import { type AttentionOptions, type Tensor, tensor } from "@heed/tensor";
import { attentionData } from "../arbitraries/attention.ts";
import type { AttentionData, AttentionProblem } from "../arbitraries/attention.ts";
import type { ViewRecipe } from "../arbitraries/views.ts";
import { roundArray } from "../dtype.ts";
import { attentionOracle } from "../oracle/attention.ts";
import { isVisible } from "../oracle/attention-problem.ts";
import type { AttentionOracleOptions } from "../oracle/attention-problem.ts";
import { broadcastMask } from "../oracle/mask.ts";
import { largest, place, placeInt32, placeView } from "./subject.ts";
import type { Subject } from "./subject.ts";

/** Strided views for q [B, S, Hq, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv] and dOut [B, S, Hq, Dv]; contiguous by default. */
export interface AttentionViews {
  readonly q?: ViewRecipe | undefined;
  readonly k?: ViewRecipe | undefined;
  readonly v?: ViewRecipe | undefined;
  readonly dOut?: ViewRecipe | undefined;
  /** Order of the axes that the operation sees; the recipes stay in [B, S, H, D]. Default "bshd". */
  readonly layout?: AttentionOptions["layout"];
}

/** The problem's values as `dtype` holds them, which are what engine and oracle both get. */
export function roundedData(problem: AttentionProblem, { dtype }: Subject): AttentionData {
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

/** Rows [B, Sk, Hkv, width] with `value` wherever no query of the key head's group may look. */
export function poisonUnseen(
  rows: Float64Array,
  width: number,
  options: AttentionOracleOptions,
  value: number = NaN,
): Float64Array {
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
        if (!isSeen) poisoned.fill(value, row * width, (row + 1) * width);
      }
  return poisoned;
}

/** Rows [B, S, Hq, width] with NaN wherever the query sees no key. */
export function poisonClosed(
  rows: Float64Array,
  width: number,
  options: AttentionOracleOptions,
): Float64Array {
  const { B, S, Sk, Hq } = options.dims;
  const poisoned = rows.slice();
  for (let b = 0; b < B; b++)
    for (let i = 0; i < S; i++)
      for (let h = 0; h < Hq; h++) {
        const sees = Array.from({ length: Sk }, (_, j) => j).some((j) => isVisible(options, b, h, i, j));
        const row = (b * S + i) * Hq + h;
        if (!sees) poisoned.fill(NaN, row * width, (row + 1) * width);
      }
  return poisoned;
}

function maskTensor(mask: AttentionData["mask"], { engine, dtype }: Subject): Tensor | undefined {
  if (mask?.kind === "boolean")
    return tensor(Uint8Array.from(mask.data), mask.shape, { dtype: "bool", engine });
  return mask && place(engine, dtype, mask.data, mask.shape);
}

/** The options of a problem as the operation takes them. */
export function placeOptions(
  problem: AttentionProblem,
  data: AttentionData,
  subject: Subject,
): AttentionOptions {
  const { engine, dtype } = subject;
  const { scale, softcap, isCausal, window, sinkTokens, queryOffset, kvLengths, dropout } = problem;
  const perHead = (x: Float64Array | undefined): Tensor | undefined =>
    x && place(engine, dtype, x, [x.length]);
  return {
    scale,
    softcap,
    isCausal,
    window,
    sinkTokens,
    queryOffset: typeof queryOffset === "object" ? placeInt32(engine, queryOffset) : queryOffset,
    kvLengths: kvLengths && placeInt32(engine, kvLengths),
    attnMask: maskTensor(data.mask, subject),
    alibiSlopes: perHead(data.alibiSlopes),
    sinks: perHead(data.sinks),
    dropout,
  };
}

/** q, k, v and dOut in the layout and strides of `views`. */
export function placeOperands(
  problem: AttentionProblem,
  data: Pick<AttentionData, "q" | "k" | "v" | "dOut">,
  { engine, dtype }: Subject,
  views: AttentionViews,
): Record<"q" | "k" | "v" | "dOut", Tensor<"float32">> {
  const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
  const put = (name: "q" | "k" | "v" | "dOut", shape: readonly number[]): Tensor<"float32"> => {
    const recipe = views[name];
    const t = recipe ? placeView(engine, dtype, data[name], recipe) : place(engine, dtype, data[name], shape);
    return (views.layout === "bhsd" ? t.transpose(1, 2) : t) as Tensor as Tensor<"float32">; // any float: one type for all
  };
  return {
    q: put("q", [B, S, Hq, D]),
    k: put("k", [B, Sk, Hkv, D]),
    v: put("v", [B, Sk, Hkv, Dv]),
    dOut: put("dOut", [B, S, Hq, Dv]),
  };
}

/** A result of the problem's layout with the axes of [B, S, H, D]. */
export function tokenMajor(x: Tensor, { layout }: AttentionViews): Tensor {
  return layout === "bhsd" ? x.transpose(1, 2) : x;
}

/** What dropout multiplies a kept weight by. */
export function dropoutFactor({ dropout }: AttentionProblem): number {
  return 1 / (1 - (dropout?.probability ?? 0));
}

/** An error in a score of size s is of order s, and the softmax passes it on. */
export function conditioningOf(data: AttentionData): number {
  const { scores } = attentionOracle(data.q, data.k, data.v, { ...data.options, scores: "masked" });
  return Math.max(1, largest(scores!));
}
