import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch } from "../../engine/fused.ts";
import type { AppendTarget } from "../paged-attention/reader.ts";
import { normRopeAppendComposed } from "./composed.ts";
import type { NormRopeAppendOptions } from "./options.ts";
import { planNormRopeAppend } from "./plan.ts";

/**
 * What stands between a projection and attention over pages, in one pass: q [T, Hq, D] and k [T, Hkv, D] are normalised and rotated as
 * `options` say, k and v [T, Hkv, Dv] go to the pages as by `kvAppend`, and the queries come back, [T, Hq, D]. Any strides, so that
 * the three may be slices of one product. The same bits as `rmsNorm`, `rope` and `kvAppend` one after the other, each of which rounds to
 * the dtype of q. The fusion that vLLM calls fused_qk_norm_rope with the cache write. Throws ShapeError, DTypeError, ArgumentError,
 * DeviceError, DisposedError, OutOfMemoryError; then nothing was written.
 */
export function normRopeAppend<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  v: Tensor<NoInfer<D>>,
  target: AppendTarget,
  options: NormRopeAppendOptions = {},
): Tensor<D> {
  return scope(() => {
    const plan = planNormRopeAppend(q, k, v, target, options);
    if (q.size + k.size + v.size > 0)
      dispatch(plan.engine, "normRopeAppend", plan, normRopeAppendComposed, options.fused);
    return plan.out as Tensor as Tensor<D>;
  });
}
