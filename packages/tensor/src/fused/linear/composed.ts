import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { binary } from "../../ops/elementwise.ts";
import { matmul } from "../../ops/matmul.ts";
import type { LinearPlan } from "./plan.ts";

/** x @ weight^T + bias from core operations. */
export function linearComposed({ x, weight, bias, out }: LinearPlan): void {
  scope(() => {
    const w = cast(weight, x.dtype) as Tensor<FloatDType>;
    matmul(x, w.transpose(), { out });
    if (bias !== undefined) binary("add", out, bias, out);
  });
}
