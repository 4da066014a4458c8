import type { ProjectionBias } from "./gqa-options.ts";
import type { Fields, JsonObject } from "./hf-fields.ts";

/** How far a layer of a decoder sees, in the words of `layer_types`. */
export type LayerType = "full_attention" | "sliding_attention";

/** What tells one model family's attention from another's. */
export interface Family {
  /** Queries and keys in heads, or from a latent (DeepSeek). */
  readonly kind: "grouped" | "latent";
  /** What the family's configuration class fills in where config.json is silent. */
  readonly defaults: JsonObject;
  /** Which projections have biases. */
  bias(config: Fields): ProjectionBias | boolean;
  /** The kind of layer `layer` where the config has no `layer_types`. */
  layerType(config: Fields, layer: number): LayerType;
  /** A norm of every query and key head. */
  readonly qkNorm?: { readonly unitOffset: boolean };
  /** A learnt logit per head in the denominator. */
  readonly sinks?: boolean;
  /** One weight `qkv_proj` for queries, keys and values. */
  readonly mergedQkv?: boolean;
  /** Whether `query_pre_attn_scalar` and `attn_logit_softcapping` count. */
  readonly isGemma?: boolean;
  /** The field with the theta of sliding layers, which then have no scaling, where it is another than that of full ones. */
  readonly slidingTheta?: string;
  /** Other names of kinds of scaling. */
  readonly ropeAliases?: Readonly<Record<string, string>>;
  /** How the rotation pairs components. Default "half". */
  pairing?(config: Fields): "half" | "interleaved";
}
const noBias = (): boolean => false;
const biasField = (config: Fields): boolean => config.flag("attention_bias");
const full = (): LayerType => "full_attention";
const slideIf = (condition: boolean): LayerType => (condition ? "sliding_attention" : "full_attention");
const slideWhereSet = (config: Fields): LayerType => slideIf(config.has("sliding_window"));
const slideOnEven = (_: Fields, layer: number): LayerType => slideIf(layer % 2 === 0);
/** Qwen slides from a layer on, and only where `use_sliding_window` says so. */
const slideOnTop = (config: Fields, layer: number): LayerType =>
  slideIf(
    config.flag("use_sliding_window") &&
      config.has("sliding_window") &&
      layer >= config.required("max_window_layers"),
  );

const QWEN = {
  num_key_value_heads: 32,
  sliding_window: 4096,
  use_sliding_window: false,
  max_window_layers: 28,
};
const GEMMA = {
  hidden_size: 2304,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 256,
  query_pre_attn_scalar: 256,
  sliding_window: 4096,
};
const GPT_OSS = {
  hidden_size: 2880,
  num_attention_heads: 64,
  num_key_value_heads: 8,
  head_dim: 64,
  sliding_window: 128,
  attention_bias: true,
  rope_theta: 150000,
  rope_scaling: {
    rope_type: "yarn",
    factor: 32,
    beta_fast: 32,
    beta_slow: 1,
    truncate: false,
    original_max_position_embeddings: 4096,
  },
};
const DEEPSEEK: Family = {
  kind: "latent",
  defaults: {
    q_lora_rank: 1536,
    kv_lora_rank: 512,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
  },
  bias: biasField,
  layerType: full,
  pairing: (config) => (config.raw("rope_interleave") === false ? "half" : "interleaved"),
};

/** Families by `model_type`: facts of each one's configuration and attention classes in Transformers. */
export const FAMILIES: Readonly<Record<string, Family>> = {
  llama: { kind: "grouped", defaults: {}, bias: biasField, layerType: full },
  mistral: {
    kind: "grouped",
    defaults: { num_key_value_heads: 8, sliding_window: 4096 },
    bias: noBias,
    layerType: slideWhereSet,
  },
  qwen2: {
    kind: "grouped",
    defaults: QWEN,
    bias: () => ({ q: true, k: true, v: true, o: false }),
    layerType: slideOnTop,
  },
  qwen3: {
    kind: "grouped",
    defaults: { ...QWEN, head_dim: 128 },
    bias: biasField,
    layerType: slideOnTop,
    qkNorm: { unitOffset: false },
  },
  gemma2: {
    kind: "grouped",
    defaults: { ...GEMMA, attn_logit_softcapping: 50 },
    bias: biasField,
    layerType: slideOnEven,
    isGemma: true,
  },
  gemma3_text: {
    kind: "grouped",
    defaults: { ...GEMMA, sliding_window_pattern: 6, rope_theta: 1e6, rope_local_base_freq: 10000 },
    bias: biasField,
    layerType: (config, layer) => slideIf((layer + 1) % config.requiredCount("sliding_window_pattern") !== 0),
    qkNorm: { unitOffset: true },
    isGemma: true,
    slidingTheta: "rope_local_base_freq",
  },
  gpt_oss: { kind: "grouped", defaults: GPT_OSS, bias: biasField, layerType: slideOnEven, sinks: true },
  phi3: {
    kind: "grouped",
    defaults: { original_max_position_embeddings: 4096 },
    bias: noBias,
    layerType: slideWhereSet,
    mergedQkv: true,
    ropeAliases: { su: "longrope", yarn: "longrope" },
  },
  deepseek_v2: DEEPSEEK,
  deepseek_v3: DEEPSEEK,
};
