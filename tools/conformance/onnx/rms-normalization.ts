import { rmsNorm } from "@heed/tensor";
import type { Engine, FloatDType, Tensor } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import { onnxInputs, onnxOutputs } from "./slots.ts";
import type { Produced } from "../judge.ts";
import { numberAttribute } from "./attributes.ts";

/** RMSNormalization (opset 23): https://onnx.ai/onnx/operators/onnx__RMSNormalization.html. Its epsilon is 1e-5 by default. */
export function runRmsNormalization(set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine): Produced[] {
  const { required, optional } = onnxInputs(set, one, engine);
  const x = required("X") as Tensor<FloatDType>;
  const axis = numberAttribute(one, "axis") ?? -1;
  const eps = numberAttribute(one, "epsilon") ?? 1e-5;
  return onnxOutputs(set, one, { Y: rmsNorm(x, optional("W"), { axis, eps }) });
}
