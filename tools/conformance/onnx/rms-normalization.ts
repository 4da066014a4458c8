import { rmsNorm } from "@heed/tensor";
import type { Engine, FloatDType, Tensor } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { numberAttribute } from "./attributes.ts";
import type { OnnxOperator } from "./operator.ts";
import { onnxInputs, onnxOutputs } from "./slots.ts";

/** https://onnx.ai/onnx/operators/onnx__RMSNormalization.html, whose tests call the weight W, and its text scale. */
export const rmsNormalizationOperator: OnnxOperator = {
  attributes: ["axis", "epsilon", "stash_type"],
  inputs: ["X", "W", "scale"],
  run: runRmsNormalization,
};
const FLOAT = 1; // of ONNX's data types

/** RMSNormalization (opset 23): https://onnx.ai/onnx/operators/onnx__RMSNormalization.html. Its epsilon is 1e-5 by default. */
export function runRmsNormalization(set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine): Produced[] {
  const { required, optional } = onnxInputs(set, one, engine);
  const x = required("X") as Tensor<FloatDType>;
  const axis = numberAttribute(one, "axis") ?? -1;
  const eps = numberAttribute(one, "epsilon") ?? 1e-5;
  const stash = numberAttribute(one, "stash_type") ?? FLOAT;
  if (stash !== FLOAT) throw new TypeError(`${one.name}: stash_type must be 1, float32; got ${stash}`);
  const weight = optional("scale") ?? required("W");
  return onnxOutputs(set, one, { Y: rmsNorm(x, weight, { axis, eps }) });
}
