import { arange, cast, rope } from "@heed/tensor";
import type { Engine, FloatDType, Tensor } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { numberAttribute } from "./attributes.ts";
import type { OnnxOperator } from "./operator.ts";
import { onnxInputs, onnxOutputs } from "./slots.ts";

/** https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html, whose tests call X input and Y output. */
export const rotaryEmbeddingOperator: OnnxOperator = {
  attributes: ["interleaved", "num_heads", "rotary_embedding_dim"],
  inputs: ["input", "X", "cos_cache", "sin_cache", "position_ids"],
  run: runRotaryEmbedding,
};

/**
 * RotaryEmbedding (opset 23): https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html. The input is [B, H, S, D] or
 * [B, S, H * D]. With position ids the caches are tables [P, rotaryDim / 2]; without, they hold a row per token
 * [B, S, rotaryDim / 2].
 */
export function runRotaryEmbedding(set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine): Produced[] {
  const { required, optional } = onnxInputs(set, one, engine);
  const input = (optional("X") ?? required("input")) as Tensor<FloatDType>;
  const x = input.rank === 4 ? input.transpose(1, 2) : splitHeads(one, input);
  const [B, S] = [x.shape[0]!, x.shape[1]!];
  const ids = optional("position_ids");
  const positions = ids ? cast(ids, "int32") : arange(0, B * S, 1, { engine }).reshape([B, S]);
  const table = (slot: string): Tensor => {
    const cache = required(slot);
    const rows = cache.reshape([-1, cache.shape.at(-1)!]);
    return cast(rows, x.dtype === "float64" ? "float64" : "float32");
  };
  const pairing = numberAttribute(one, "interleaved") === 1 ? "interleaved" : "half";
  const cos = table("cos_cache");
  const stated = numberAttribute(one, "rotary_embedding_dim") ?? 0; // 0: all of a head
  const turning = stated === 0 ? x.shape[3]! : stated;
  if (turning !== 2 * cos.shape[1]!)
    throw new TypeError(`${one.name}: ${turning} components turn, but cos_cache has ${cos.shape[1]} angles`);
  const turned = rope(x, cos, table("sin_cache"), { positions, pairing });
  const y = input.rank === 4 ? turned.transpose(1, 2) : turned.reshape(input.shape);
  return onnxOutputs(set, one, { output: y, Y: y });
}

function splitHeads(one: OnnxCase, input: Tensor<FloatDType>): Tensor<FloatDType> {
  const H = numberAttribute(one, "num_heads") ?? 0;
  const [B, S, width] = input.shape;
  if (H < 1 || width! % H !== 0)
    throw new TypeError(`${one.name}: ${String(input)} does not split into ${H} heads`);
  return input.reshape([B!, S!, H, width! / H]);
}
