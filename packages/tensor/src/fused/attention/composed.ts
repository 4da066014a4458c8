import { accumulatorOf, type FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { concat, copyInto } from "../../ops/concat.ts";
import { arange, full } from "../../ops/create.ts";
import {
  add,
  binary,
  div,
  exp,
  log,
  maskNegInf,
  maskZero,
  mul,
  sub,
  tanh,
  unary,
} from "../../ops/elementwise.ts";
import { matmul } from "../../ops/matmul.ts";
import { max, sum } from "../../ops/reduce.ts";
import { softmax } from "../../ops/softmax.ts";
import { keepMask } from "./dropout.ts";
import { recorder } from "../../engine/recorder.ts";
import type { AttentionPlan, ScoreRules } from "./plan.ts";

type F = Tensor<"float32">; // float32 or float64: whatever the accumulator dtype is
type Mask = Tensor<"bool">;

/** q, k, v in the accumulator dtype, one group of query heads per key head: [B, Hkv, G, S, D], [B, Hkv, 1, Sk, D], [B, Hkv, 1, Sk, Dv]. */
export function grouped(p: Pick<AttentionPlan, "q" | "k" | "v" | "dims">): { q: F; k: F; v: F } {
  const { Hkv, Hq } = p.dims;
  const wide = (t: Tensor): F => cast(t, accumulatorOf(p.q.dtype)).permute(0, 2, 1, 3) as F;
  const q = wide(p.q);
  return { q: splitHeads(q, Hkv, Hq), k: wide(p.k).unsqueeze(2) as F, v: wide(p.v).unsqueeze(2) as F };
}
/** [B, Hq, ...] as [B, Hkv, G, ...]. */
export function splitHeads<T extends Tensor>(t: T, Hkv: number, Hq: number): T {
  return t.reshape([t.shape[0]!, Hkv, Hkv === 0 ? 1 : Hq / Hkv, ...t.shape.slice(2)]) as T;
}
/** Position of each query: int64 [B or 1, 1, 1, S, 1], so that no window or offset overflows. */
function queryPositions(rules: ScoreRules, S: number, Sk: number, like: Tensor): Tensor<"int64"> {
  const rows = arange(0, S, 1, { dtype: "int64", engine: like.engine }).reshape([
    1,
    1,
    1,
    S,
    1,
  ]) as Tensor<"int64">;
  const { queryOffset, kvLengths } = rules;
  if (typeof queryOffset === "number") return add(rows, queryOffset);
  if (typeof queryOffset === "object") return add(rows, perBatch(queryOffset));
  return kvLengths === undefined ? add(rows, Sk - S) : add(rows, sub(perBatch(kvLengths), S));
}
/** int32 [B] as int64 [B, 1, 1, 1, 1]. */
function perBatch(t: Tensor): Tensor<"int64"> {
  return cast(t, "int64").contiguous().reshape([-1, 1, 1, 1, 1]) as Tensor<"int64">;
}
/** Scores before the softmax at each stage, and which keys take part: all [B, Hkv, G, S, Sk]. */
export interface Scores {
  readonly raw: F; // scale * q.k
  readonly softcapped: F;
  readonly masked: F; // with biases; -Infinity where excluded
  readonly allowed: Mask;
}
/** The scores of numerics "scaled dot-product attention", step by step. */
export function scores(q: F, k: F, rules: ScoreRules, Hq: number): Scores {
  const [, Hkv, , S, Sk] = [...q.shape.slice(0, 4), k.shape[3]!] as [number, number, number, number, number];
  const raw = mul(matmul(q, k.transpose()), rules.scale);
  const softcapped = rules.softcap > 0 ? mul(tanh(div(raw, rules.softcap)), rules.softcap) : raw;
  let masked = softcapped;
  const p = queryPositions(rules, S, Sk, q);
  const j = arange(0, Sk, 1, { dtype: "int64", engine: q.engine });
  if (rules.alibiSlopes !== undefined) {
    const distance = cast(unary("abs", sub(p, j)), q.dtype);
    masked = sub(masked, mul(distance, rules.alibiSlopes.reshape([1, Hkv, Hq / Hkv, 1, 1]) as F));
  }
  const exclude = (visible: Tensor): void => void (masked = maskNegInf(masked, visible as Mask));
  if (rules.mask !== undefined) {
    const mask = splitHeads(rules.mask, Hkv, Hq);
    if (mask.dtype === "bool") exclude(mask);
    else {
      const bias = cast(mask, q.dtype);
      masked = add(masked, bias);
      exclude(unary("not", binary("equal", bias, -Infinity))); // a NaN score plus -Infinity would stay NaN
    }
  }
  if (rules.windowRight >= 0) exclude(binary("lessEqual", j, add(p, rules.windowRight)));
  if (rules.windowLeft >= 0) {
    const near = binary("lessEqual", sub(p, rules.windowLeft), j);
    exclude(rules.sinkTokens > 0 ? binary("or", near, binary("less", j, rules.sinkTokens)) : near);
  }
  if (rules.kvLengths !== undefined) exclude(binary("less", j, perBatch(rules.kvLengths)));
  return { raw, softcapped, masked, allowed: unary("not", binary("equal", masked, -Infinity)) as Mask };
}
/** x with everything that is not finite set to 0: what a product with zero weights may touch. */
export function finiteOnly(x: F): F {
  return maskZero(x, unary("isFinite", x) as Mask);
}
/** The sum of what is not finite among the rows of v [..., n, m] that each row of `allowed` [..., l, n] uses: 0, an infinity, or NaN. [..., l, m], or a scalar 0. */
export function notFiniteSeen(allowed: Mask, v: F): F {
  const zero = full([], 0, { dtype: v.dtype, engine: v.engine }) as F;
  const odd = unary("not", unary("isFinite", v)) as Mask;
  // On the host it costs little to see that there is none, and three products are saved. A tape cannot look: a replay has other values.
  if (v.engine.device === "cpu" && recorder() === undefined && sum(cast(odd, v.dtype) as F).data[0] === 0)
    return zero;
  const kinds = [
    [Infinity, binary("equal", v, Infinity)],
    [-Infinity, binary("equal", v, -Infinity)],
    [NaN, unary("not", binary("equal", v, v))],
  ] as const;
  return kinds.reduce((total, [value, isKind]) => {
    const count = matmul(cast(allowed, v.dtype) as F, cast(isKind, v.dtype) as F);
    const seen = unary("not", binary("lessEqual", count, 0)) as Mask;
    return add(total, maskZero(add(zero, value), seen));
  }, zero);
}
/** Dropout of a plan on what stands at [B, Hkv, G, S, Sk]: a dropped element becomes 0, NaN included, a kept one is divided by 1 - probability. */
export function dropper({ rules, dims, engine }: Pick<AttentionPlan, "rules" | "dims" | "engine">): {
  readonly keep: Mask | undefined;
  drop(x: F): F;
} {
  const { dropout } = rules;
  if (dropout === undefined) return { keep: undefined, drop: (x) => x };
  const keep = splitHeads(keepMask(dropout, dims, engine), dims.Hkv, dims.Hq);
  return { keep, drop: (x) => maskZero(mul(x, dropout.factor), keep) };
}
/** What {@link attentionComposed} has on the way, for callers that want scores. */
export type ScoreStage = "raw" | "softcapped" | "masked" | "probabilities";

/** softmax(scores) V from core operations: the meaning that every attention kernel must match. Returns the stage asked for. */
export function attentionComposed(
  plan: AttentionPlan,
  stage?: ScoreStage,
  softmaxDType?: FloatDType,
): F | undefined {
  return scope(() => {
    const { dims, rules } = plan;
    const { B, Hq, Hkv, S, Sk } = dims;
    const { q, k, v } = grouped(plan);
    const s = scores(q, k, rules, Hq);
    const sinkColumn = rules.sinks
      ?.reshape([1, Hkv, Hq / Hkv, 1, 1])
      .broadcastTo([B, Hkv, Hq / Hkv, S, 1]) as F | undefined;
    const logits = sinkColumn === undefined ? s.masked : concat([s.masked, sinkColumn], -1);
    const weights = cast(softmax(cast(logits, softmaxDType ?? logits.dtype)), q.dtype).slice(-1, 0, Sk) as F;
    const { keep, drop } = dropper(plan);
    const used = keep === undefined ? s.allowed : (binary("and", s.allowed, keep) as Mask);
    // 0 * NaN is NaN, so values that are not finite stay out of the product; a row that uses one gets it back as a sum would.
    const out = add(matmul(drop(weights), finiteOnly(v)), notFiniteSeen(used, v));
    copyInto(out.reshape([B, Hq, S, dims.Dv]).permute(0, 2, 1, 3), plan.out);
    if (plan.lse !== undefined) {
      const top = finiteOnly(max(logits, { axes: [-1], keepDims: true }));
      const lse = add(log(sum(exp(sub(logits, top)), { axes: [-1], keepDims: true })), top);
      copyInto(lse.reshape([B, Hq, S]), plan.lse);
    }
    return stage === undefined
      ? undefined
      : ((stage === "probabilities" ? weights : s[stage]).contiguous().reshape([B, Hq, S, Sk]) as F);
  });
}
