import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { copyInto } from "../../ops/concat.ts";
import { kvAppend } from "../kv-append/index.ts";
import { rmsNorm } from "../rms-norm/index.ts";
import { rope } from "../rope/index.ts";
import type { NormRopeAppendPlan } from "./plan.ts";

type F = Tensor<"float32">; // any float dtype

/** One operation after the other, each by the engine's kernel if it has one. */
export function normRopeAppendComposed(plan: NormRopeAppendPlan): void {
  scope(() => {
    const { q, k, v, out, kPages, vPages, slots } = plan;
    copyInto(turned(plan, normalised(plan, q as Tensor as F, plan.norm?.q)), out);
    kvAppend(turned(plan, normalised(plan, k as Tensor as F, plan.norm?.k)), v, kPages, vPages, slots);
  });
}
function normalised({ norm }: NormRopeAppendPlan, x: F, weight: Tensor | undefined): F {
  if (norm === undefined || weight === undefined) return x;
  const { eps, unitOffset } = norm;
  const [H, D] = x.shape.slice(1) as [number, number];
  if (weight.shape[0] === D) return rmsNorm(x, weight, { eps, unitOffset });
  return rmsNorm(x, weight.reshape([H, D]), { eps, unitOffset, axis: 1 });
}
function turned({ rope: turn }: NormRopeAppendPlan, x: F): F {
  if (turn === undefined) return x;
  const { cos, sin, positions, pairing } = turn;
  return rope(x, cos, sin, { positions, pairing });
}
