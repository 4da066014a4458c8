import { arange, cast, rope } from "@heed/tensor";
import type { Engine, FloatDType, Tensor } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import { onnxInputs, onnxOutputs } from "./slots.ts";
import type { Produced } from "../judge.ts";
import { numberAttribute } from "./attributes.ts";

/**
 * RotaryEmbedding (opset 23): https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html. The input is [B, H, S, D] or
 * [B, S, H * D]. With position ids the caches are tables [P, rotaryDim / 2]; without, they hold a row per token
 * [B, S, rotaryDim / 2].
 */
export function runRotaryEmbedding(set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine): Produced[] {
  const { required, optional } = onnxInputs(set, one, engine);
  const input = required("input") as Tensor<FloatDType>;
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
  const y = rope(x, table("cos_cache"), table("sin_cache"), { positions, pairing });
  return onnxOutputs(set, one, { output: input.rank === 4 ? y.transpose(1, 2) : y.reshape(input.shape) });
}

function splitHeads(one: OnnxCase, input: Tensor<FloatDType>): Tensor<FloatDType> {
  const H = numberAttribute(one, "num_heads") ?? 0;
  const [B, S, width] = input.shape;
  if (H < 1 || width! % H !== 0)
    throw new TypeError(`${one.name}: ${String(input)} does not split into ${H} heads`);
  return input.reshape([B!, S!, H, width! / H]);
}
