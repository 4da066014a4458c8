import type { MultiHeadLatentAttentionOptions } from "@heed/attention";
import { Unsupported } from "../run.ts";
import { type Config, flag, knownScaling, number, required } from "./options.ts";

/** Fields that are read here. */
const known = new Set(
  (
    "hidden_size num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim attention_bias " +
    "rope_theta rope_interleaved rope_scaling rms_norm_eps max_position_embeddings"
  ).split(" "),
);

/** Whether a configuration asks for latent attention. */
export function isLatent(config: Config): boolean {
  return "kv_lora_rank" in config;
}
/**
 * The options of the MultiHeadLatentAttention that a configuration describes, or why there is none; see `groupedQueryOptions`. YaRN's
 * temperature goes into the layer's default softmax scale. Throws a TypeError in words for a field that is missing or of another kind.
 */
export function latentOptions(config: Config): MultiHeadLatentAttentionOptions | Unsupported {
  const scaling = knownScaling(config, known);
  if (scaling instanceof Unsupported) return scaling;
  return {
    hiddenSize: required(config, "hidden_size"),
    numHeads: required(config, "num_attention_heads"),
    qLoraRank: number(config, "q_lora_rank"),
    kvLoraRank: required(config, "kv_lora_rank"),
    qkNopeHeadDim: required(config, "qk_nope_head_dim"),
    qkRopeHeadDim: required(config, "qk_rope_head_dim"),
    vHeadDim: required(config, "v_head_dim"),
    bias: flag(config, "attention_bias") ?? false,
    rope: {
      base: required(config, "rope_theta"),
      pairing: flag(config, "rope_interleaved") ? "interleaved" : "half",
      scaling,
    },
    normEps: number(config, "rms_norm_eps"),
  };
}
