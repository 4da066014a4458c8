import type { LayerRopeOptions } from "./gqa-options.ts";
import type { Family, LayerType } from "./hf-families.ts";
import type { Fields } from "./hf-fields.ts";
import type { RopeScaling } from "./rope-scaling.ts";

/** Where a layer's rotation is read from. */
export interface RopeSource {
  /** Size of the part of a head that rotates, before `partial_rotary_factor`. */
  readonly headDim: number;
  readonly type: LayerType;
  readonly family: Pick<Family, "slidingTheta" | "ropeAliases" | "pairing">;
}
/** The object that describes a rotation, and what the config says beside it. */
interface Scope {
  readonly rope: Fields | undefined;
  /** The whole text config. */
  readonly config: Fields;
}
type Reader = (scope: { readonly rope: Fields; readonly config: Fields }) => RopeScaling;

/** Fields that say which rotation it is, not how it is scaled; "finetuned" is a remark of early YaRN models. */
const COMMON = new Set(["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"]);
const YARN_FIELDS = [
  "beta_fast",
  "beta_slow",
  "truncate",
  "mscale",
  "mscale_all_dim",
  "attention_factor",
] as const;

/** The context that the model was trained on, before it was stretched. */
function originalPositions({ rope, config }: { rope: Fields; config: Fields }): number {
  const name = "original_max_position_embeddings";
  return rope.number(name) ?? config.number(name) ?? config.required("max_position_embeddings");
}
/** By how much the context grew, where `factor` does not say it. */
function stretch(scope: { rope: Fields; config: Fields }): number {
  return scope.config.required("max_position_embeddings") / originalPositions(scope);
}
const optional = <K extends string, V>(name: K, value: V | undefined): { [N in K]?: V } =>
  (value === undefined ? {} : { [name]: value }) as { [N in K]?: V };

/** How each `rope_type` is read, and which fields it may have besides the common ones. */
const KINDS: Readonly<Record<string, { readonly fields: readonly string[]; readonly read: Reader }>> = {
  default: {
    fields: ["factor", "original_max_position_embeddings"],
    read: () => ({ type: "none" }),
  },
  linear: {
    fields: ["factor", "original_max_position_embeddings"],
    read: ({ rope }) => ({ type: "linear", factor: rope.required("factor") }),
  },
  dynamic: {
    fields: ["factor", "original_max_position_embeddings"],
    // Transformers measures the length against max_position_embeddings.
    read: ({ rope, config }) => ({
      type: "dynamic",
      factor: rope.required("factor"),
      originalMaxPositions: config.required("max_position_embeddings"),
    }),
  },
  yarn: {
    fields: ["factor", "original_max_position_embeddings", ...YARN_FIELDS],
    read: (scope) => ({
      type: "yarn",
      factor: scope.rope.number("factor") ?? stretch(scope),
      originalMaxPositions: originalPositions(scope),
      ...optional("betaFast", scope.rope.number("beta_fast")),
      ...optional("betaSlow", scope.rope.number("beta_slow")),
      ...optional("truncate", scope.rope.has("truncate") ? scope.rope.flag("truncate") : undefined),
      ...optional("mscale", scope.rope.number("mscale")),
      ...optional("mscaleAllDim", scope.rope.number("mscale_all_dim")),
      ...optional("attentionFactor", scope.rope.number("attention_factor")),
    }),
  },
  llama3: {
    fields: ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
    read: (scope) => ({
      type: "llama3",
      factor: scope.rope.required("factor"),
      lowFreqFactor: scope.rope.required("low_freq_factor"),
      highFreqFactor: scope.rope.required("high_freq_factor"),
      originalMaxPositions: originalPositions(scope),
    }),
  },
  longrope: {
    fields: ["factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"],
    read: (scope) => ({
      type: "longrope",
      shortFactor: scope.rope.numbers("short_factor"),
      longFactor: scope.rope.numbers("long_factor"),
      originalMaxPositions: originalPositions(scope),
      factor: longFactorOf(scope),
      ...optional("attentionFactor", scope.rope.number("attention_factor")),
    }),
  },
};
/** Transformers prefers the ratio of contexts where the config gives the original one. */
function longFactorOf(scope: { rope: Fields; config: Fields }): number {
  const { rope, config } = scope;
  const name = "original_max_position_embeddings";
  return rope.has(name) || config.has(name) ? stretch(scope) : rope.required("factor");
}
/** The object of the layer's rotation: `rope_parameters`, there perhaps one per layer type, or `rope_scaling`. */
function scopeOf(config: Fields, type: LayerType): Scope & { readonly isOwn: boolean } {
  const parameters = config.object("rope_parameters");
  const own = parameters?.object(type);
  if (own !== undefined) return { rope: own, config, isOwn: true };
  const perLayer = ["full_attention", "sliding_attention"].some((name) => parameters?.has(name));
  if (perLayer) parameters!.malformed(type, "must be given, as the layer is of that type");
  return { rope: parameters ?? config.object("rope_scaling"), config, isOwn: false };
}
function scalingOf({ rope, config }: Scope, aliases: Readonly<Record<string, string>>): RopeScaling {
  if (rope === undefined) return { type: "none" };
  const field = rope.has("rope_type") ? "rope_type" : "type";
  const said = rope.text(field) ?? "default";
  const kind = Object.hasOwn(aliases, said) ? aliases[said]! : said;
  if (!Object.hasOwn(KINDS, kind)) rope.unsupported(field, `known are ${Object.keys(KINDS).join(", ")}`);
  const { fields, read } = KINDS[kind]!;
  for (const name of rope.names) {
    if (!COMMON.has(name) && !fields.includes(name))
      rope.unsupported(name, `rotations of type "${kind}" have no such field here`);
  }
  return read({ rope, config });
}
/** The rotation of a layer. Throws FormatError, UnsupportedError, naming the field. */
export function ropeOf(config: Fields, source: RopeSource): LayerRopeOptions {
  const { headDim, type, family } = source;
  const { isOwn, ...scope } = scopeOf(config, type);
  const apart = type === "sliding_attention" ? family.slidingTheta : undefined;
  const said = isOwn || apart === undefined ? scope.rope?.number("rope_theta") : undefined;
  const partial = scope.rope?.number("partial_rotary_factor") ?? config.number("partial_rotary_factor") ?? 1;
  return {
    base: said ?? config.number(apart ?? "rope_theta") ?? 10000,
    pairing: family.pairing?.(config) ?? "half",
    rotaryDim: Math.floor(headDim * partial),
    scaling: apart !== undefined && !isOwn ? { type: "none" } : scalingOf(scope, family.ropeAliases ?? {}),
  };
}
