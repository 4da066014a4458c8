import type { AttentionBackwardPlan, AttentionPlan } from "../fused/attention/plan.ts";
import type { KvAppendPlan } from "../fused/kv-append/plan.ts";
import type { LinearPlan } from "../fused/linear/plan.ts";
import type { NormRopeAppendPlan } from "../fused/norm-rope-append/plan.ts";
import type { PagedAttentionPlan } from "../fused/paged-attention/plan.ts";
import type { RmsNormBackwardPlan, RmsNormPlan } from "../fused/rms-norm/plan.ts";
import type { RopePlan } from "../fused/rope/plan.ts";
import type { SealPagesPlan } from "../fused/seal-pages/plan.ts";
import { ArgumentError, UnsupportedError } from "../core/errors.ts";
import type { Engine } from "./engine.ts";
import { type FusedForm, recorder } from "./recorder.ts";

/** A kernel for one fused operation. */
export interface FusedOp<Plan> {
  /** Undefined when the kernel can run this plan, else the reason in words. */
  refusal(plan: Plan): string | undefined;
  run(plan: Plan): void;
}
/** The fused operations of an engine, a line each. An absent or refused one runs composed from the engine's core methods. */
export interface FusedOps {
  readonly linear?: FusedOp<LinearPlan>;
  readonly rope?: FusedOp<RopePlan>;
  readonly rmsNorm?: FusedOp<RmsNormPlan>;
  readonly rmsNormBackward?: FusedOp<RmsNormBackwardPlan>;
  readonly attention?: FusedOp<AttentionPlan>;
  readonly attentionBackward?: FusedOp<AttentionBackwardPlan>;
  readonly pagedAttention?: FusedOp<PagedAttentionPlan>;
  readonly kvAppend?: FusedOp<KvAppendPlan>;
  readonly normRopeAppend?: FusedOp<NormRopeAppendPlan>;
  readonly sealPages?: FusedOp<SealPagesPlan>;
}
/**
 * How an operation picks between its kernel and its composed form. `auto`: the kernel when it can. `require`: the kernel, or
 * UnsupportedError with its reason. `off`: the composed form.
 */
export type FusedMode = "auto" | "require" | "off";

const MODES: Readonly<Record<FusedMode, true>> = { auto: true, require: true, off: true };

/** Runs `plan` on the engine's kernel or in the composed form, as `mode` says. Throws UnsupportedError, ArgumentError. */
export function dispatch<K extends keyof FusedOps, Plan>(
  engine: Engine,
  name: K,
  plan: Plan & (FusedOps[K] extends FusedOp<infer P> | undefined ? P : never),
  composed: (plan: Plan) => void,
  mode: FusedMode = "auto",
): void {
  if (!Object.hasOwn(MODES, mode)) {
    throw new ArgumentError(`[${name}] fused must be "auto", "require" or "off"; got ${String(mode)}`, {
      fused: mode,
    });
  }
  const op = mode === "off" ? undefined : (engine.fused[name] as FusedOp<Plan> | undefined);
  const refusal = op === undefined ? `engine "${engine.name}" has no kernel for it` : op.refusal(plan);
  if (op !== undefined && refusal === undefined) perform(name, "kernel", plan, (p) => op.run(p));
  else if (mode === "require") {
    throw new UnsupportedError(
      `[${name}] a kernel is required, but ${refusal}; use fused: "auto" to run the composed form`,
      {
        engine: engine.name,
        refusal,
      },
    );
  } else perform(name, "composed", plan, composed);
}
function perform<Plan>(name: keyof FusedOps, form: FusedForm, plan: Plan, run: (plan: Plan) => void): void {
  const record = recorder();
  if (record === undefined) run(plan);
  else record.fused(name, form, plan, run);
}
