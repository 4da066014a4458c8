import { ArgumentError, type FloatDType } from "@heed/tensor";
import type { GroupedQueryAttentionOptions } from "./gqa-options.ts";
import { FAMILIES, type Family, type LayerType } from "./hf-families.ts";
import { Fields, type JsonObject } from "./hf-fields.ts";
import { ropeOf } from "./hf-rope.ts";
import type { MultiHeadLatentAttentionOptions } from "./mla-options.ts";

/** A layer's operation and options, as a checkpoint's config describes them. */
export type HFLayer =
  | { readonly operation: "GroupedQueryAttention"; readonly options: GroupedQueryAttentionOptions }
  | { readonly operation: "MultiHeadLatentAttention"; readonly options: MultiHeadLatentAttentionOptions };
/** {@link HFLayer}, with what `dtype` (older: `torch_dtype`) says of the weights; undefined when it says nothing. */
export type HFAttentionConfig = HFLayer & { readonly dtype: FloatDType | undefined };

const DTYPES: Readonly<Record<string, FloatDType>> = {
  float64: "float64",
  float32: "float32",
  float16: "float16",
  bfloat16: "bfloat16",
};
/** Where the options are read from. */
interface Source {
  /** The text model's fields over the family's defaults. */
  readonly config: Fields;
  readonly family: Family;
  /** The whole config, which is another one in a multimodal model. */
  readonly whole: Fields;
}
/** The text model of a config: of a multimodal one, its `text_config`. */
function sourceOf(json: JsonObject): Source {
  const whole = new Fields(json, "config");
  const type = whole.text("model_type") ?? whole.malformed("model_type", "must be given");
  if (type === "gemma3") {
    const family = FAMILIES["gemma3_text"]!;
    const config = whole.object("text_config", family.defaults);
    return { config: config ?? whole.malformed("text_config", "must be given"), family, whole };
  }
  if (!Object.hasOwn(FAMILIES, type))
    whole.unsupported("model_type", `known are ${Object.keys(FAMILIES).join(", ")} and gemma3`);
  const family = FAMILIES[type]!;
  return { config: new Fields({ ...family.defaults, ...json }, "config"), family, whole };
}
function dtypeOf({ config, whole }: Source): FloatDType | undefined {
  for (const fields of [config, whole]) {
    for (const name of ["dtype", "torch_dtype"]) {
      const said = fields.text(name)?.replace(/^torch\./, "");
      if (said === undefined) continue;
      return Object.hasOwn(DTYPES, said)
        ? DTYPES[said]
        : fields.unsupported(name, `known are ${Object.keys(DTYPES).join(", ")}`);
    }
  }
  return undefined;
}
/** Whether a layer slides, by `layer_types` or by the family's pattern. */
function layerTypeOf({ config, family }: Source, layer: number): LayerType {
  const layers = config.count("num_hidden_layers") ?? Infinity;
  if (!Number.isSafeInteger(layer) || layer < 0 || layer >= layers) {
    throw new ArgumentError(
      `[huggingface] layer must be a whole number from 0 to ${layers - 1}; got ${layer}`,
      { layer, layers },
    );
  }
  const types = config.list("layer_types");
  if (types === undefined) return family.layerType(config, layer);
  const type = types[layer];
  if (type === undefined) config.malformed("layer_types", `must have a type for layer ${layer}`);
  if (type !== "full_attention" && type !== "sliding_attention")
    config.unsupported("layer_types", `layer ${layer} is neither full_attention nor sliding_attention`);
  return type as LayerType;
}
/** A window W of Hugging Face counts the query itself. */
function windowOf(config: Fields, type: LayerType): { left: number } | undefined {
  if (type === "full_attention") return undefined;
  if (config.has("use_sliding_window") && !config.flag("use_sliding_window"))
    config.malformed("use_sliding_window", "must be true where a layer is of type sliding_attention");
  return { left: config.requiredCount("sliding_window") - 1 };
}
function refuseWhatNoLayerDoes(config: Fields): void {
  if (config.raw("use_bidirectional_attention") ?? false)
    config.unsupported("use_bidirectional_attention", "decoders here are causal");
}
function groupedOptions(source: Source, layer: number): GroupedQueryAttentionOptions {
  const { config, family } = source;
  const type = layerTypeOf(source, layer);
  const hiddenSize = config.requiredCount("hidden_size");
  const numHeads = config.requiredCount("num_attention_heads");
  const headDim = config.count("head_dim") ?? Math.floor(hiddenSize / numHeads);
  const norm = family.qkNorm;
  return {
    hiddenSize,
    numHeads,
    numKvHeads: config.count("num_key_value_heads") ?? numHeads,
    headDim,
    bias: family.bias(config),
    rope: ropeOf(config, { headDim, type, family }),
    window: windowOf(config, type),
    layerIndex: layer,
    ...(norm && { qkNorm: { eps: config.number("rms_norm_eps") ?? 1e-6, unitOffset: norm.unitOffset } }),
    ...(family.sinks && { sinks: true }),
    ...(family.mergedQkv && { mergedQkv: true }),
    ...(family.isGemma && {
      scale: config.required("query_pre_attn_scalar") ** -0.5,
      softcap: config.number("attn_logit_softcapping"),
    }),
  };
}
/** Latent norms have Transformers' default eps, 1e-6, whatever `rms_norm_eps` says. */
function latentOptions(source: Source, layer: number): MultiHeadLatentAttentionOptions {
  const { config, family } = source;
  const type = layerTypeOf(source, layer);
  if (type !== "full_attention") config.unsupported("layer_types", "latent attention has no window");
  const numHeads = config.requiredCount("num_attention_heads");
  if ((config.count("num_key_value_heads") ?? numHeads) !== numHeads)
    config.unsupported("num_key_value_heads", `latent attention has one per query head, ${numHeads}`);
  const qkRopeHeadDim = config.requiredCount("qk_rope_head_dim");
  return {
    hiddenSize: config.requiredCount("hidden_size"),
    numHeads,
    qLoraRank: config.count("q_lora_rank") ?? null,
    kvLoraRank: config.requiredCount("kv_lora_rank"),
    qkNopeHeadDim: config.requiredCount("qk_nope_head_dim"),
    qkRopeHeadDim,
    vHeadDim: config.requiredCount("v_head_dim"),
    bias: family.bias(config) === true,
    normEps: 1e-6,
    rope: ropeOf(config, { headDim: qkRopeHeadDim, type, family }),
    layerIndex: layer,
  };
}
/**
 * The attention of one layer of a Hugging Face checkpoint, from its parsed config.json: llama, mistral, qwen2,
 * qwen3, gemma2, gemma3 (its text model), gpt_oss, phi3, deepseek_v2, deepseek_v3. Reads old and new spellings
 * (`rope_theta` and `rope_scaling` or `rope_parameters`, `torch_dtype` or `dtype`) and `layer_types`. Fields
 * that are absent mean what the model's configuration class means by them. Throws FormatError for a field that
 * makes no sense, UnsupportedError for what no layer here does, both naming the field; ArgumentError for a layer
 * that the model does not have.
 */
export function attentionConfigFromHF(json: JsonObject, layer: number = 0): HFAttentionConfig {
  const source = sourceOf(json);
  refuseWhatNoLayerDoes(source.config);
  const dtype = dtypeOf(source);
  return source.family.kind === "latent"
    ? { operation: "MultiHeadLatentAttention", options: latentOptions(source, layer), dtype }
    : { operation: "GroupedQueryAttention", options: groupedOptions(source, layer), dtype };
}
