/** Which layer a model's configuration, in Hugging Face's field names, asks for. Nothing here computes. */
import type { GroupedQueryAttentionOptions, RopeScaling } from "@heed/attention";
import type { ModelCase } from "@heed/testkit";
import { Unsupported } from "../run.ts";

type Config = ModelCase["config"];

/** Fields that are read here, and those that say nothing about the layer's function. */
const known = new Set(
  (
    "hidden_size num_attention_heads num_key_value_heads head_dim attention_bias attention_sinks rope_theta " +
    "rope_interleaved rope_scaling sliding_window attn_logit_softcapping query_pre_attn_scalar qk_norm rms_norm_eps " +
    "rms_norm_unit_offset max_position_embeddings"
  ).split(" "),
);

function number(config: Config, field: string): number | undefined {
  const value = config[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "number") return value;
  throw new TypeError(`config.${field} must be a number; got ${JSON.stringify(value)}`);
}

function required(config: Config, field: string): number {
  const value = number(config, field);
  if (value === undefined) throw new TypeError(`config has no ${field}`);
  return value;
}

/** The rotation's scaling; undefined where the library has none of that kind. */
function scalingOf(config: Config): RopeScaling | undefined {
  const scaling = config.rope_scaling as Config | null | undefined;
  if (scaling === null || scaling === undefined) return { type: "none" };
  switch (scaling.rope_type ?? scaling.type) {
    case "linear":
      return { type: "linear", factor: required(scaling, "factor") };
    case "llama3":
      return {
        type: "llama3",
        factor: required(scaling, "factor"),
        lowFreqFactor: required(scaling, "low_freq_factor"),
        highFreqFactor: required(scaling, "high_freq_factor"),
        originalMaxPositions: required(scaling, "original_max_position_embeddings"),
      };
    default:
      return undefined;
  }
}

/**
 * The options of the GroupedQueryAttention that a configuration describes, or why there is none. A field that is not known and set
 * might change the function, so it makes the case unsupported. Throws a TypeError in words for a field of another kind.
 */
export function groupedQueryOptions(config: Config): GroupedQueryAttentionOptions | Unsupported {
  const unknown = Object.keys(config).filter(
    (name) => !known.has(name) && config[name] !== null && config[name] !== false,
  );
  if (unknown.length > 0) return new Unsupported(`no layer knows ${unknown.join(", ")}`);
  const scaling = scalingOf(config);
  if (scaling === undefined)
    return new Unsupported(
      `no rotation is scaled as ${JSON.stringify((config.rope_scaling as Config).rope_type)}`,
    );
  const window = number(config, "sliding_window");
  const scalar = number(config, "query_pre_attn_scalar");
  return {
    hiddenSize: required(config, "hidden_size"),
    numHeads: required(config, "num_attention_heads"),
    numKvHeads: required(config, "num_key_value_heads"),
    headDim: number(config, "head_dim"),
    bias: config.attention_bias === true,
    rope: {
      base: required(config, "rope_theta"),
      pairing: config.rope_interleaved === true ? "interleaved" : "half",
      scaling,
    },
    // A window of W lets a query see itself and the W - 1 tokens before it.
    window: window === undefined ? undefined : { left: window - 1 },
    softcap: number(config, "attn_logit_softcapping"),
    scale: scalar === undefined ? undefined : scalar ** -0.5,
    qkNorm:
      config.qk_norm === true
        ? { eps: required(config, "rms_norm_eps"), unitOffset: config.rms_norm_unit_offset === true }
        : undefined,
    sinks: config.attention_sinks === true,
  };
}
