import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { copyInto } from "../../ops/concat.ts";
import { add, binary, div, exp, maskZero, mul, neg, sub, unary } from "../../ops/elementwise.ts";
import { matmul } from "../../ops/matmul.ts";
import { max, sum } from "../../ops/reduce.ts";
import { dropper, finiteOnly, grouped, notFiniteSeen, scores, splitHeads } from "./composed.ts";
import type { AttentionBackwardPlan } from "./plan.ts";

type F = Tensor<"float32">; // the accumulator dtype
type Mask = Tensor<"bool">;
const last = { axes: [-1], keepDims: true } as const;

/** Adds up a full gradient [B, Hq, S, Sk] over the axes along which the mask was broadcast. */
function reduceToMask(ds: F, dMask: Tensor): void {
  const axes = dMask.shape.map((_, i) => i).filter((i) => dMask.strides[i] === 0);
  const own = axes.reduce((t, axis) => t.slice(axis, 0, Math.min(1, t.shape[axis]!)), dMask);
  copyInto(axes.length === 0 ? ds : sum(ds, { axes, keepDims: true }), own);
}
/**
 * The gradients of attention from core operations, in the forward pass's order, with p = exp(s - lse):
 * delta = sum(dOut * out), dp = dOut V^T, ds = p (dp - delta), dQ = scale dRaw K, dK = scale dRaw^T Q, dV = p^T dOut,
 * dMask = ds, dSink = -sum(exp(sink - lse) delta), where dRaw = ds (1 - tanh^2) under a softcap. Under dropout, dp and the p of dV are
 * dropped as the weights of the forward pass were. All written with `=`.
 */
export function attentionBackwardComposed(plan: AttentionBackwardPlan): void {
  scope(() => {
    const { dims, rules } = plan;
    const { B, Hq, Hkv, S, Sk, D } = dims;
    const { q, k, v } = grouped(plan);
    const perRow = (t: Tensor): F => splitHeads(cast(t, q.dtype).permute(0, 2, 1, 3), Hkv, Hq) as F; // [B, S, Hq, Dv]
    const s = scores(q, k, rules, Hq);
    const { keep, drop } = dropper(plan);
    const used = keep === undefined ? s.allowed : (binary("and", s.allowed, keep) as Mask);
    // A row that sees nothing, or drops all that it sees, has no gradient, whatever stands in its dOut.
    const open = max(cast(used, q.dtype) as F, last);
    const dOut = maskZero(perRow(plan.dOut), unary("not", binary("lessEqual", open, 0)) as Mask);
    const lse = splitHeads(plan.lse, Hkv, Hq).unsqueeze(-1) as F; // [B, Hkv, G, S, 1]
    const p = maskZero(exp(sub(s.masked, lse)), s.allowed);
    const delta = sum(mul(dOut, perRow(plan.out)), last);
    const dp = drop(matmul(dOut, v.transpose()));
    const ds = maskZero(mul(p, sub(dp, delta)), s.allowed);
    const slope =
      rules.softcap > 0 ? sub(unary("square", div(s.softcapped, rules.softcap)) as F, 1) : undefined; // tanh^2 - 1
    const dRaw = slope === undefined ? ds : maskZero(neg(mul(ds, slope)), s.allowed);

    const dq = matmul(dRaw, finiteOnly(k), { alpha: rules.scale });
    copyInto(dq.reshape([B, Hq, S, D]).permute(0, 2, 1, 3), plan.dq);
    // The G heads of a group read one key head: their rows add up in the product.
    const rows = <T extends Tensor>(t: T): T => t.contiguous().reshape([B, Hkv, -1, t.shape[4]!]) as T;
    const dk = matmul(rows(dRaw).transpose() as F, rows(finiteOnly(q)), { alpha: rules.scale });
    copyInto(dk.permute(0, 2, 1, 3), plan.dk);
    const dv = add(
      matmul(rows(drop(p)).transpose() as F, rows(finiteOnly(dOut))),
      notFiniteSeen(rows(used).transpose() as Mask, rows(dOut)),
    );
    copyInto(dv.permute(0, 2, 1, 3), plan.dv);
    if (plan.dMask !== undefined) reduceToMask(ds.reshape([B, Hq, S, Sk]) as F, plan.dMask);
    if (plan.dSinks !== undefined) {
      const sinks = rules.sinks!.reshape([1, Hkv, Hq / Hkv, 1, 1]) as F;
      const perHead = sum(mul(exp(sub(sinks, lse)), delta), { axes: [0, 3, 4] });
      copyInto(neg(perHead).reshape([Hq]), plan.dSinks);
    }
  });
}
