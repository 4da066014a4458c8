import { attention, attentionScores, cast, concat, full } from "@heed/tensor";
import type { Engine, FloatDType, Tensor } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { meaningOf } from "./attention-meaning.ts";
import type { OnnxAttention } from "./attention-meaning.ts";
import type { OnnxOperator } from "./operator.ts";
import { onnxInputs, onnxOutputs } from "./slots.ts";

/** https://onnx.ai/onnx/operators/onnx__Attention.html, opsets 23 to 25. */
export const attentionOperator: OnnxOperator = {
  attributes: [
    "is_causal",
    "kv_num_heads",
    "left_window_size",
    "q_num_heads",
    "qk_matmul_output_mode",
    "right_window_size",
    "scale",
    "softcap",
    "softmax_precision",
  ],
  inputs: ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"],
  run: runAttention,
};

/** [B, H, S, size] of an input that may be [B, S, H * size]. */
function headMajor(x: Tensor, heads: number): Tensor {
  if (x.rank === 4) return x;
  const [B, S, width] = x.shape as [number, number, number];
  return x.reshape([B, S, heads, width / heads]).transpose(1, 2);
}

/** The mask with a column of "hidden" for every key that it does not cover. */
function padded(mask: Tensor | undefined, columns: number): Tensor | undefined {
  if (mask === undefined || columns === 0) return mask;
  const hidden = mask.dtype === "bool" ? 0 : -Infinity;
  const { dtype, engine } = mask;
  return concat([mask, full([...mask.shape.slice(0, -1), columns], hidden, { dtype, engine })], -1);
}

function output(y: Tensor, m: OnnxAttention): Tensor {
  if (!m.isFlat) return y;
  return y
    .transpose(1, 2)
    .contiguous()
    .reshape([m.B, m.S, m.Hq * m.Dv]);
}

/** Attention (opsets 23 to 25) by this library's operation; {@link meaningOf} says what a case asks for. */
export function runAttention(set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine): Produced[] {
  const m = meaningOf(one);
  const { required, optional } = onnxInputs(set, one, engine);
  const withPast = (slot: string, pastSlot: string): Tensor => {
    const given = headMajor(required(slot), m.Hkv);
    const past = optional(pastSlot);
    return past === undefined ? given : concat([past, given], 2);
  };
  const q = headMajor(required("Q"), m.Hq) as Tensor<FloatDType>;
  const k = withPast("K", "past_key") as Tensor<FloatDType>;
  const v = withPast("V", "past_value") as Tensor<FloatDType>;
  const lengths = optional("nonpad_kv_seqlen");
  const options = {
    layout: "bhsd",
    attnMask: padded(optional("attn_mask"), m.maskPadding),
    kvLengths: lengths && cast(lengths, "int32"),
    queryOffset: m.queryOffset,
    scale: m.scale,
    softcap: m.softcap,
    isCausal: m.isCausal,
    window: m.window,
  } as const;
  const wantsScores = m.scores !== undefined || m.softmaxDType !== undefined;
  // The kernels' softmax runs in the accumulator's dtype; another one is had from the form that shows its scores.
  const inspected = wantsScores
    ? attentionScores(q, k, v, { ...options, stage: m.scores, softmaxDtype: m.softmaxDType })
    : undefined;
  const y = m.softmaxDType === undefined ? attention(q, k, v, options) : inspected!.output;
  return onnxOutputs(set, one, {
    Y: output(y, m),
    present_key: k,
    present_value: v,
    qk_matmul_output: inspected && cast(inspected.scores, q.dtype),
  });
}
