import type { FloatDType } from "../../core/dtype.ts";
import { ArgumentError } from "../../core/errors.ts";
import { scope } from "../../core/scope.ts";
import { checkDType, type Tensor } from "../../core/tensor.ts";
import { dispatch } from "../../engine/fused.ts";
import { copyInto } from "../../ops/concat.ts";
import { fill } from "../../ops/create.ts";
import { attentionBackwardComposed } from "./composed-backward.ts";
import { attentionComposed, type ScoreStage } from "./composed.ts";
import type { AttentionOptions } from "./options.ts";
import {
  type AttentionBackwardPlan,
  type AttentionGradients,
  type AttentionPlan,
  planAttention,
  planAttentionBackward,
} from "./plan.ts";

/** Runs the forward pass; where there are no keys at all, out is 0 and lse the sink or -Infinity. */
function forward(plan: AttentionPlan, o: AttentionOptions): void {
  if (plan.dims.Sk > 0 && plan.out.size > 0)
    return dispatch(plan.engine, "attention", plan, attentionComposed, o.fused);
  fill(plan.out, 0);
  if (plan.lse === undefined) return;
  const { sinks } = plan.rules;
  if (sinks === undefined) fill(plan.lse, -Infinity);
  else copyInto(sinks.reshape([1, -1, 1]).broadcastTo(plan.lse.shape), plan.lse);
}
/**
 * Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) of q [B, S, Hq, D] over k [B, Sk, Hkv, D] and v [B, Sk, Hkv, Dv];
 * query head h reads key head floor(h * Hkv / Hq). Returns [B, S, Hq, Dv] in q's dtype ([B, H, S, D] order with `layout: "bhsd"`).
 * Products and softmax run in float32 (float64 for float64). A row that sees nothing is 0; a key that is not seen changes nothing, NaN
 * included. Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError, OutOfMemoryError, UnsupportedError.
 */
export function attention<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  v: Tensor<NoInfer<D>>,
  options: AttentionOptions = {},
): Tensor<D> {
  return scope(() => {
    const plan = planAttention(q, k, v, options, false);
    forward(plan, options);
    return plan.result as Tensor as Tensor<D>;
  });
}
/** Output of attention and the log-sum-exp of each row's scores. */
export interface AttentionWithLse<D extends FloatDType = FloatDType> {
  readonly output: Tensor<D>;
  /** [B, Hq, S], float32 (float64 for float64); -Infinity where a row sees nothing and has no sink. */
  readonly lse: Tensor;
}
/** {@link attention} that also returns the log-sum-exp, with which partial results combine. */
export function attentionWithLse<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  v: Tensor<NoInfer<D>>,
  options: AttentionOptions = {},
): AttentionWithLse<D> {
  return scope(() => {
    const plan = planAttention(q, k, v, options, true);
    forward(plan, options);
    return { output: plan.result as Tensor as Tensor<D>, lse: plan.lse! };
  });
}
/** Options of {@link attentionVjp}. */
export interface AttentionVjpOptions extends AttentionOptions {
  /** Also return the gradient of a float `attnMask`. Default false. */
  readonly attnMaskGradient?: boolean | undefined;
}
/** A forward pass of attention that can be differentiated. Dispose it when the gradients are taken. */
export interface AttentionVjp<D extends FloatDType = FloatDType> extends AttentionWithLse<D> {
  /** Gradients of sum(dOutput * output); may be called again, with another dOutput. Throws ShapeError, DTypeError, DisposedError. */
  backward(dOutput: Tensor<NoInfer<D>>): AttentionGradients;
  /** What the backward pass keeps alive: handles on operands and results. */
  readonly saved: readonly Tensor[];
  /** Frees `saved` and `lse`, not `output`. */
  [Symbol.dispose](): void;
}
/**
 * {@link attention} with its backward pass (Dao et al. 2022, arXiv:2205.14135, section 3): probabilities are recomputed from lse, so
 * that memory grows with the length, not its square. The operands must not be changed before backward is called.
 */
export function attentionVjp<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  v: Tensor<NoInfer<D>>,
  options: AttentionVjpOptions = {},
): AttentionVjp<D> {
  return scope(() => {
    const plan = planAttention(q, k, v, options, true);
    forward(plan, options);
    const kept = {
      ...plan,
      q: plan.q.alias(),
      k: plan.k.alias(),
      v: plan.v.alias(),
      out: plan.out.alias(),
    } as AttentionPlan;
    const { mask, alibiSlopes, sinks, kvLengths, queryOffset } = plan.rules;
    const own = (t: Tensor | undefined): Tensor | undefined => t?.alias();
    const rules = {
      ...plan.rules,
      mask: own(mask),
      alibiSlopes: own(alibiSlopes),
      sinks: own(sinks),
      kvLengths: own(kvLengths) as Tensor<"int32"> | undefined,
      queryOffset: typeof queryOffset === "object" ? (queryOffset.alias() as Tensor<"int32">) : queryOffset,
    };
    const operands = [
      kept.q,
      kept.k,
      kept.v,
      kept.out,
      ...[rules.mask, rules.alibiSlopes, rules.sinks, rules.kvLengths, rules.queryOffset].filter(
        (t) => typeof t === "object",
      ),
    ];
    const saved = [...operands, plan.lse!];
    return {
      output: plan.result as Tensor as Tensor<D>,
      lse: plan.lse!,
      saved,
      backward: (dOutput) => backward({ ...kept, rules }, dOutput, options),
      [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
    };
  });
}
function backward(plan: AttentionPlan, dOutput: Tensor, o: AttentionVjpOptions): AttentionGradients {
  return scope(() => {
    const { plan: full, gradients } = planAttentionBackward(plan, dOutput, o, o.attnMaskGradient ?? false);
    if (full.dims.Sk > 0 && full.out.size > 0)
      dispatch(full.engine, "attentionBackward", full, attentionBackwardComposed, o.fused);
    else clear(full);
    return gradients;
  });
}
function clear(plan: AttentionBackwardPlan): void {
  for (const t of [plan.dq, plan.dk, plan.dv, plan.dSinks]) if (t !== undefined) fill(t, 0);
}
/** Options of {@link attentionScores}. */
export interface AttentionScoresOptions extends Omit<AttentionOptions, "fused"> {
  /**
   * "raw": scale * q.k; "softcapped"; "masked": with biases, -Infinity where excluded; "probabilities" (default): after the softmax,
   * before dropout.
   */
  readonly stage?: ScoreStage | undefined;
  /** The dtype that the softmax runs in. Default the accumulator's. */
  readonly softmaxDtype?: FloatDType | undefined;
}
const STAGES: Readonly<Record<ScoreStage, true>> = {
  raw: true,
  softcapped: true,
  masked: true,
  probabilities: true,
};
function checkStage(stage: ScoreStage, softmaxDtype: FloatDType | undefined): void {
  if (!Object.hasOwn(STAGES, stage)) {
    throw new ArgumentError(
      `[attention] stage must be ${Object.keys(STAGES).join(", ")}; got ${String(stage)}`,
      { stage },
    );
  }
  if (softmaxDtype !== undefined) checkDType(softmaxDtype);
}
/**
 * {@link attention} in its composed form, with the scores at one stage [B, Hq, S, Sk] in float32 (float64 for float64). Takes memory
 * of that size, so it is for inspection. Same errors.
 */
export function attentionScores<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  v: Tensor<NoInfer<D>>,
  options: AttentionScoresOptions = {},
): { readonly output: Tensor<D>; readonly scores: Tensor } {
  return scope(() => {
    const plan = planAttention(q, k, v, options, false);
    const stage = options.stage ?? "probabilities";
    checkStage(stage, options.softmaxDtype);
    const scores = attentionComposed(plan, stage, options.softmaxDtype)!;
    return { output: plan.result as Tensor as Tensor<D>, scores };
  });
}
