/** Which layer a model's configuration, in Hugging Face's field names, asks for. Nothing here computes. */
import type { GroupedQueryAttentionOptions, RopeScaling } from "@heed/attention";
import type { ModelCase } from "@heed/testkit";
import { Unsupported } from "../run.ts";

/** A model's configuration in Hugging Face's field names. */
export type Config = ModelCase["config"];

/** Fields that are read here. */
const known = new Set(
  (
    "hidden_size num_attention_heads num_key_value_heads head_dim attention_bias attention_sinks rope_theta " +
    "rope_interleaved rope_scaling partial_rotary_factor sliding_window attn_logit_softcapping query_pre_attn_scalar qk_norm " +
    "rms_norm_eps rms_norm_unit_offset max_position_embeddings"
  ).split(" "),
);
/** Fields that say nothing about an attention layer's function. */
const elsewhere = new Set(
  (
    "architectures model_type torch_dtype dtype transformers_version vocab_size num_hidden_layers intermediate_size " +
    "hidden_act hidden_activation initializer_range use_cache tie_word_embeddings bos_token_id eos_token_id pad_token_id"
  ).split(" "),
);

/** A number that may be absent or null. Throws TypeError for another kind. */
export function number(config: Config, field: string): number | undefined {
  const value = config[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "number") return value;
  throw new TypeError(`config.${field} must be a number; got ${JSON.stringify(value)}`);
}

/** A number that must be there. Throws TypeError. */
export function required(config: Config, field: string): number {
  const value = number(config, field);
  if (value === undefined) throw new TypeError(`config has no ${field}`);
  return value;
}

/** True or false, which may be absent or null. Throws TypeError for another kind. */
export function flag(config: Config, field: string): boolean | undefined {
  const value = config[field];
  if (value === undefined || value === null || typeof value === "boolean") return value ?? undefined;
  throw new TypeError(`config.${field} must be true or false; got ${JSON.stringify(value)}`);
}

function numbers(config: Config, field: string): number[] {
  const value = config[field];
  if (Array.isArray(value) && value.every((v) => typeof v === "number")) return value as number[];
  throw new TypeError(`config.${field} must be a list of numbers; got ${JSON.stringify(value)}`);
}

/** The fields of each kind of scaling besides the type and the original context. */
const scalingFields: Readonly<Record<string, string>> = {
  default: "",
  linear: "factor",
  dynamic: "factor",
  yarn: "factor beta_fast beta_slow truncate mscale mscale_all_dim attention_factor",
  llama3: "factor low_freq_factor high_freq_factor",
  longrope: "factor short_factor long_factor attention_factor",
};
/** Names that a scaling says of itself and that nobody reads for its kind. */
function unknownScalingFields(scaling: Config, type: string): string[] {
  const fields = `type rope_type original_max_position_embeddings ${scalingFields[type]}`.split(" ");
  return Object.keys(scaling).filter((name) => !fields.includes(name) && scaling[name] !== null);
}
/** How `config.rope_scaling` names each kind of scaling, and its fields; n is the original context. */
const scalings: Readonly<Record<string, (s: Config, n: () => number, extended?: number) => RopeScaling>> = {
  default: () => ({ type: "none" }),
  linear: (s) => ({ type: "linear", factor: required(s, "factor") }),
  dynamic: (s, n) => ({ type: "dynamic", factor: required(s, "factor"), originalMaxPositions: n() }),
  yarn: (s, n) => ({
    type: "yarn",
    factor: required(s, "factor"),
    originalMaxPositions: n(),
    betaFast: number(s, "beta_fast"),
    betaSlow: number(s, "beta_slow"),
    truncate: flag(s, "truncate"),
    mscale: number(s, "mscale"),
    mscaleAllDim: number(s, "mscale_all_dim"),
    attentionFactor: number(s, "attention_factor"),
  }),
  llama3: (s, n) => ({
    type: "llama3",
    factor: required(s, "factor"),
    lowFreqFactor: required(s, "low_freq_factor"),
    highFreqFactor: required(s, "high_freq_factor"),
    originalMaxPositions: n(),
  }),
  longrope: (s, n, extended = n()) => ({
    type: "longrope",
    shortFactor: numbers(s, "short_factor"),
    longFactor: numbers(s, "long_factor"),
    originalMaxPositions: n(),
    factor: number(s, "factor") ?? extended / n(),
    attentionFactor: number(s, "attention_factor"),
  }),
};

/** The rotation's scaling, or why the library has none like it. */
function scalingOf(config: Config): RopeScaling | Unsupported {
  const scaling = config.rope_scaling as Config | null | undefined;
  if (scaling === null || scaling === undefined) return { type: "none" };
  const type = String(scaling.rope_type ?? scaling.type);
  if (!Object.hasOwn(scalings, type))
    return new Unsupported(`no rotation is scaled as ${JSON.stringify(type)}`);
  const unknown = unknownScalingFields(scaling, type);
  if (unknown.length > 0) return new Unsupported(`no ${type} scaling knows ${unknown.join(", ")}`);
  const original = (): number =>
    number(scaling, "original_max_position_embeddings") ?? required(config, "max_position_embeddings");
  return scalings[type]!(scaling, original, number(config, "max_position_embeddings"));
}

/**
 * The rotation's scaling, or why the case is unsupported: a field that is not in `fields` and set, since it might change the function,
 * or a scaling that there is not.
 */
export function knownScaling(config: Config, fields: ReadonlySet<string>): RopeScaling | Unsupported {
  const isSet = (value: unknown): boolean => value !== null && value !== false;
  const unknown = Object.keys(config).filter((name) => {
    if (name === "attention_dropout") return config[name] !== 0 && isSet(config[name]);
    return !fields.has(name) && !elsewhere.has(name) && isSet(config[name]);
  });
  if (unknown.length > 0) return new Unsupported(`no layer knows ${unknown.join(", ")}`);
  return scalingOf(config);
}

/**
 * The options of the GroupedQueryAttention that a configuration describes, or why there is none. A field that is not known and set
 * might change the function, so it makes the case unsupported. Throws a TypeError in words for a field of another kind.
 */
export function groupedQueryOptions(config: Config): GroupedQueryAttentionOptions | Unsupported {
  const scaling = knownScaling(config, known);
  if (scaling instanceof Unsupported) return scaling;
  const window = number(config, "sliding_window");
  const scalar = number(config, "query_pre_attn_scalar");
  const hiddenSize = required(config, "hidden_size");
  const numHeads = required(config, "num_attention_heads");
  const headDim = number(config, "head_dim") ?? hiddenSize / numHeads;
  return {
    hiddenSize,
    numHeads,
    numKvHeads: number(config, "num_key_value_heads") ?? numHeads,
    headDim,
    bias: flag(config, "attention_bias") ?? false,
    rope: {
      rotaryDim: Math.floor(headDim * (number(config, "partial_rotary_factor") ?? 1)),
      base: required(config, "rope_theta"),
      pairing: flag(config, "rope_interleaved") ? "interleaved" : "half",
      scaling,
    },
    // A window of W lets a query see itself and the W - 1 tokens before it.
    window: window === undefined ? undefined : { left: window - 1 },
    softcap: number(config, "attn_logit_softcapping"),
    scale: scalar === undefined ? undefined : scalar ** -0.5,
    qkNorm: flag(config, "qk_norm")
      ? { eps: required(config, "rms_norm_eps"), unitOffset: flag(config, "rms_norm_unit_offset") ?? false }
      : undefined,
    sinks: flag(config, "attention_sinks") ?? false,
  };
}
