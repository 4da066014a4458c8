import type { FusedOp, LinearPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { MATMUL } from "../structs.ts";

/** out = x @ weight^T + bias on heed_matmul_run: the transpose is a pair of strides, the bias is added before the one rounding. */
export function linear(native: Native): FusedOp<LinearPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = MATMUL;
  return {
    refusal: () => undefined,
    run: ({ x, weight, bias, out }) => {
      using transposed = weight.transpose();
      block.begin(bytes, 0);
      block.float64(fields.alpha, 1);
      block.float64(fields.beta, 0);
      block.tensor(fields.a, x); // [M, K]
      block.tensor(fields.b, transposed); // [K, N]
      block.tensor(fields.out, out); // [M, N]
      block.tensor(fields.bias, bias); // [N]
      native.run(symbols.heed_matmul_run);
    },
  };
}
