import { accumulatorOf } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { copyInto } from "../../ops/concat.ts";
import { add, mul, neg, sub } from "../../ops/elementwise.ts";
import { gather } from "../../ops/gather.ts";
import type { RopePlan } from "./plan.ts";

type F = Tensor<"float32">; // the accumulator dtype of x

/** The rotation from core operations: (a, b) becomes (a cos - b sin, b cos + a sin). */
export function ropeComposed(plan: RopePlan): void {
  scope(() => {
    const { rotaryDim, pairing, x, out } = plan;
    const half = rotaryDim / 2;
    const table = (t: Tensor): F => gather(t, plan.positions).unsqueeze(2) as F; // [B, S, 1, half]
    const cos = table(plan.cos);
    const sin = plan.inverse ? neg(table(plan.sin)) : table(plan.sin);
    const side = (t: Tensor, which: 0 | 1): Tensor =>
      pairing === "half"
        ? t.slice(-1, which * half, (which + 1) * half)
        : t
            .slice(-1, 0, rotaryDim)
            .reshape([...t.shape.slice(0, -1), half, 2])
            .select(-1, which);
    const a = cast(side(x, 0), accumulatorOf(x.dtype)) as F;
    const b = cast(side(x, 1), accumulatorOf(x.dtype)) as F;
    copyInto(sub(mul(a, cos), mul(b, sin)), side(out, 0));
    copyInto(add(mul(b, cos), mul(a, sin)), side(out, 1));
    if (rotaryDim < x.shape[3]!) copyInto(x.slice(-1, rotaryDim), out.slice(-1, rotaryDim));
  });
}
