/**
 * What a case of the ONNX operator Attention (opsets 23 to 25) asks for, in this library's terms. Nothing here computes.
 * Source: https://onnx.ai/onnx/operators/onnx__Attention.html.
 */
import type { OnnxCase, OnnxSlot } from "@heed/testkit";
import { numberAttribute } from "./attributes.ts";

/** Stages at which the operator's fourth output shows the scores, in the order of `qk_matmul_output_mode`. */
export const scoreStages = ["raw", "softcapped", "masked", "probabilities"] as const;

/** Dtypes of `softmax_precision`, by the number that ONNX gives a data type. */
const softmaxDTypes: Readonly<Record<number, SoftmaxDType>> = {
  1: "float32",
  10: "float16",
  11: "float64",
  16: "bfloat16",
};
/** What the softmax may be asked to run in. */
export type SoftmaxDType = "float16" | "bfloat16" | "float32" | "float64";

/** A case of the operator with its defaults resolved. Letters as in the library: B, S, Sk, Hq, Hkv, D, Dv. */
export interface OnnxAttention {
  readonly B: number;
  readonly S: number;
  /** Keys in all: those of the past and those given. */
  readonly Sk: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  /** Whether Q, K, V and Y are [B, S, H * D] rather than [B, H, S, D]. Past and present have the latter form always. */
  readonly isFlat: boolean;
  readonly scale: number | undefined;
  readonly softcap: number | undefined;
  readonly isCausal: boolean;
  readonly window: { readonly left?: number; readonly right?: number } | undefined;
  /** Position of query 0; "end": kvLengths[b] - S. */
  readonly queryOffset: number | "end";
  /** Columns of -inf (or false) to append to the mask, which may cover fewer keys than there are. */
  readonly maskPadding: number;
  readonly scores: (typeof scoreStages)[number] | undefined;
  readonly softmaxDType: SoftmaxDType | undefined;
}

function inputShape(one: OnnxCase, slot: string): readonly number[] {
  const found: OnnxSlot | undefined = one.inputs[slot];
  if (found === undefined) throw new TypeError(`${one.name} has no input ${slot}`);
  return found.shape;
}

/** Heads and head size of Q, K or V: axes of a 4-D input; of a 3-D input, the last axis split by an attribute. */
function headsOf(
  shape: readonly number[],
  heads: number | undefined,
): [length: number, heads: number, size: number] {
  if (shape.length === 4) return [shape[2]!, shape[1]!, shape[3]!];
  if (shape.length !== 3) throw new TypeError(`Q, K and V must have 3 or 4 axes; got [${shape.join(", ")}]`);
  if (heads === undefined || heads < 1 || shape[2]! % heads !== 0) {
    throw new TypeError(
      `[${shape.join(", ")}] does not split into ${heads ?? "an unstated number of"} heads`,
    );
  }
  return [shape[1]!, heads, shape[2]! / heads];
}

/** A window side; the operator's -1 (its default) leaves the side open. */
function windowOf(one: OnnxCase): OnnxAttention["window"] {
  const left = numberAttribute(one, "left_window_size") ?? -1;
  const right = numberAttribute(one, "right_window_size") ?? -1;
  if (Math.min(left, right) < -1)
    throw new TypeError(`${one.name}: a window side must be -1 or more; got ${left}, ${right}`);
  if (left < 0 && right < 0) return undefined;
  return { ...(left >= 0 && { left }), ...(right >= 0 && { right }) };
}

/** Score outputs are wanted only if the fourth output has a name. */
function scoresOf(one: OnnxCase): OnnxAttention["scores"] {
  if (one.outputs.qk_matmul_output === undefined) return undefined;
  const mode = numberAttribute(one, "qk_matmul_output_mode") ?? 0;
  const stage = scoreStages[mode];
  if (stage === undefined) throw new TypeError(`qk_matmul_output_mode must be 0 to 3; got ${mode}`);
  return stage;
}

function softmaxDTypeOf(one: OnnxCase): SoftmaxDType | undefined {
  const code = numberAttribute(one, "softmax_precision");
  if (code === undefined) return undefined;
  const dtype = softmaxDTypes[code];
  if (dtype === undefined) throw new TypeError(`softmax_precision ${code} is not a float type`);
  return dtype;
}

/** Columns the mask lacks: they are hidden, and a last axis of 1 is no exception, in the operator's reference either. */
function maskPaddingOf({ inputs }: OnnxCase, Sk: number): number {
  const width = inputs.attn_mask?.shape.at(-1);
  if (width === undefined) return 0;
  if (width > Sk) throw new TypeError(`attn_mask covers ${width} keys of ${Sk}`);
  return Sk - width;
}

/**
 * Resolves a case. Positions: with a past they continue it (query 0 stands at the past's length); with
 * `nonpad_kv_seqlen` the last query stands at the last valid key of its sequence; otherwise query 0 stands at key 0,
 * which aligns a causal mask top left. Throws a TypeError in words for a case that the operator does not define.
 */
export function meaningOf(one: OnnxCase): OnnxAttention {
  const q = inputShape(one, "Q");
  const [S, Hq, D] = headsOf(q, numberAttribute(one, "q_num_heads"));
  const [given, Hkv] = headsOf(inputShape(one, "K"), numberAttribute(one, "kv_num_heads"));
  const [, , Dv] = headsOf(inputShape(one, "V"), numberAttribute(one, "kv_num_heads"));
  const { past_key: pastKey, past_value: pastValue, nonpad_kv_seqlen: lengths } = one.inputs;
  if ((pastKey === undefined) !== (pastValue === undefined))
    throw new TypeError(`${one.name}: past_key and past_value must be given together`);
  if (pastKey !== undefined && lengths !== undefined)
    throw new TypeError(`${one.name}: nonpad_kv_seqlen and a past exclude each other`);
  const past = pastKey?.shape[2] ?? 0;
  const Sk = past + given;
  const softcap = numberAttribute(one, "softcap") ?? 0; // 0 and less: none
  return {
    B: q[0]!,
    S,
    Sk,
    Hq,
    Hkv,
    D,
    Dv,
    isFlat: q.length === 3,
    scale: numberAttribute(one, "scale"),
    softcap: softcap > 0 ? softcap : undefined,
    isCausal: numberAttribute(one, "is_causal") === 1,
    window: windowOf(one),
    queryOffset: lengths === undefined ? past : "end",
    maskPadding: maskPaddingOf(one, Sk),
    scores: scoresOf(one),
    softmaxDType: softmaxDTypeOf(one),
  };
}
