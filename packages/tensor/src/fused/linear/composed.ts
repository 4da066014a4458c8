import { scope } from "../../core/scope.ts";
import { binary } from "../../ops/elementwise.ts";
import { matmul } from "../../ops/matmul.ts";
import type { LinearPlan } from "./plan.ts";

/** x @ weight^T + bias from core operations. */
export function linearComposed({ x, weight, bias, out }: LinearPlan): void {
  scope(() => {
    matmul(x, weight.transpose(), { out });
    if (bias !== undefined) binary("add", out, bias, out);
  });
}
