import { ArgumentError, Tensor, type Window } from "@heed/tensor";
import { AttentionHead, type AttentionHeadOptions } from "./attention-head.ts";
import {
  type AnyRules,
  anything,
  boolean,
  isObject,
  number,
  numbers,
  object,
  oneOf,
  orElse,
  orNull,
  readAttributes,
  required,
  type Rules,
  string,
} from "./attributes.ts";
import { GlobalAttention, type GlobalAttentionOptions } from "./global.ts";
import type {
  GroupedQueryAttentionOptions,
  LayerRopeOptions,
  ProjectionBias,
  QueryKeyNormOptions,
} from "./gqa-options.ts";
import { GroupedQueryAttention } from "./gqa.ts";
import type { Module } from "./layer.ts";
import { Linear, type LinearLayerOptions } from "./linear.ts";
import { LocalAttention, type LocalAttentionOptions } from "./local.ts";
import type { MultiHeadLatentAttentionOptions } from "./mla-options.ts";
import { MultiHeadLatentAttention } from "./mla.ts";
import { RMSNorm, type RMSNormLayerOptions } from "./norm.ts";
import type { Parameters } from "./parameters.ts";
import type { RopeSections } from "./rope-options.ts";
import { RotaryEmbedding } from "./rope.ts";
import { ScaledDotProductAttention, type ScaledDotProductAttentionOptions } from "./sdpa.ts";

/**
 * Makes a layer of its attributes but the operation, as plain data, and of parameters by their names in the
 * layer.
 */
export type LayerBuilder<L extends Module = Module> = (
  attributes: Readonly<Record<string, unknown>>,
  parameters: ReadonlyMap<string, Tensor>,
) => L;
/** The layers that {@link buildLayer} knows, by operation. */
export interface BuiltLayers {
  readonly AttentionHead: AttentionHead;
  readonly GlobalAttention: GlobalAttention;
  readonly GroupedQueryAttention: GroupedQueryAttention;
  readonly Linear: Linear;
  readonly LocalAttention: LocalAttention;
  readonly MultiHeadLatentAttention: MultiHeadLatentAttention;
  readonly RMSNorm: RMSNorm;
  readonly ScaledDotProductAttention: ScaledDotProductAttention;
}
/** Options of {@link buildLayer}. */
export interface BuildOptions {
  /**
   * Take the parameters under this name alone: "model.layers.0.self_attn" makes
   * "model.layers.0.self_attn.q_proj.weight" the layer's "q_proj.weight". Default all.
   */
  readonly prefix?: string | undefined;
  /** Builders by operation, for layers of one's own. Default {@link layerBuilders}. */
  readonly builders?: ReadonlyMap<string, LayerBuilder> | undefined;
}
const window = object<Window>({ left: number, right: number });
const eachBias = object<ProjectionBias>({
  q: required(boolean),
  k: required(boolean),
  v: required(boolean),
  o: required(boolean),
});
const rope = object<LayerRopeOptions>({
  rotaryDim: number,
  base: number,
  pairing: string,
  maxPositions: number,
  scaling: anything,
  positionFactor: number,
  sections: orNull(object<RopeSections>({ pairs: required(numbers), order: string })),
});
const ropeOrEmbedding = orNull(orElse((value) => value instanceof RotaryEmbedding, rope));
const grouped: Rules<GlobalAttentionOptions> = {
  hiddenSize: required(number),
  numHeads: required(number),
  numKvHeads: required(number),
  headDim: number,
  bias: orElse((value) => typeof value === "boolean", eachBias),
  rope: ropeOrEmbedding,
  qkNorm: orNull(object<QueryKeyNormOptions>({ eps: number, unitOffset: boolean, over: string })),
  tiedValue: boolean,
  mergedQkv: boolean,
  contextSize: orNull(number),
  rotateContext: boolean,
  isCausal: boolean,
  softcap: orNull(number),
  scale: orNull(number),
  sinks: boolean,
  layerIndex: number,
};
const latent: Rules<MultiHeadLatentAttentionOptions> = {
  hiddenSize: required(number),
  numHeads: required(number),
  qLoraRank: orNull(number),
  kvLoraRank: required(number),
  qkNopeHeadDim: required(number),
  qkRopeHeadDim: required(number),
  vHeadDim: number,
  bias: boolean,
  rope: ropeOrEmbedding,
  normEps: number,
  isCausal: boolean,
  scale: orNull(number),
  layerIndex: number,
};
/** A builder that checks attributes by their rules and hands them on as options. */
function builder<O, L extends Module>(
  what: string,
  rules: Rules<O>,
  make: (options: O, parameters: ReadonlyMap<string, Tensor>) => L,
): LayerBuilder<L> {
  return (attributes, parameters) =>
    make(readAttributes(what, attributes, rules as AnyRules) as O, parameters);
}
const BUILDERS: { readonly [K in keyof BuiltLayers]: LayerBuilder<BuiltLayers[K]> } = {
  AttentionHead: builder<AttentionHeadOptions, AttentionHead>(
    "AttentionHead",
    {
      hiddenSize: required(number),
      headDim: required(number),
      bias: boolean,
      isCausal: boolean,
      layerIndex: number,
    },
    (o, p) => new AttentionHead(o, p),
  ),
  GlobalAttention: builder("GlobalAttention", grouped, (o, p) => new GlobalAttention(o, p)),
  GroupedQueryAttention: builder<GroupedQueryAttentionOptions, GroupedQueryAttention>(
    "GroupedQueryAttention",
    { ...grouped, window: orNull(window), sinkTokens: number },
    (o, p) => new GroupedQueryAttention(o, p),
  ),
  Linear: builder<LinearLayerOptions, Linear>(
    "Linear",
    { inFeatures: required(number), outFeatures: required(number), bias: boolean },
    (o, p) => new Linear(o, p),
  ),
  LocalAttention: builder<LocalAttentionOptions, LocalAttention>(
    "LocalAttention",
    { ...grouped, windowSize: required(number), sinkTokens: number },
    (o, p) => new LocalAttention(o, p),
  ),
  MultiHeadLatentAttention: builder(
    "MultiHeadLatentAttention",
    latent,
    (o, p) => new MultiHeadLatentAttention(o, p),
  ),
  RMSNorm: builder<RMSNormLayerOptions, RMSNorm>(
    "RMSNorm",
    { shape: required(numbers), eps: number, unitOffset: boolean },
    (o, p) => new RMSNorm(o, p),
  ),
  ScaledDotProductAttention: builder<ScaledDotProductAttentionOptions, ScaledDotProductAttention>(
    "ScaledDotProductAttention",
    {
      isCausal: boolean,
      window,
      sinkTokens: number,
      scale: number,
      softcap: number,
      layout: oneOf("bshd", "bhsd"),
    },
    (o, p) => {
      for (const name of p.keys())
        throw new ArgumentError(`[ScaledDotProductAttention] takes no parameters; got "${name}"`, { name });
      return new ScaledDotProductAttention(o);
    },
  ),
};
/** The registry: a builder for each operation. Copy it into a larger map to add layers of one's own. */
export const layerBuilders: ReadonlyMap<string, LayerBuilder> = new Map(Object.entries(BUILDERS));

function named(what: string, given: Parameters, prefix: string | undefined): Map<string, Tensor> {
  if (typeof given !== "object" || given === null) {
    throw new ArgumentError(`[${what}] parameters must be tensors by name; got ${String(given)}`, {
      given,
    });
  }
  const pairs: [unknown, unknown][] = [...(given instanceof Map ? given : Object.entries(given))];
  const entries = pairs.map(([name, t]) => [String(name), t] as const);
  const start = prefix === undefined ? "" : `${prefix}.`;
  const chosen = entries.filter(([name]) => name.startsWith(start));
  if (chosen.length === 0 && entries.length > 0) {
    const names = entries.map(([name]) => name);
    const some = names.length > 8 ? [...names.slice(0, 8), "..."] : names;
    throw new ArgumentError(`[${what}] no parameter lies under "${prefix}"; given: ${some.join(", ")}`, {
      prefix,
      given: names,
    });
  }
  for (const [name, t] of chosen) {
    if (!(t instanceof Tensor))
      throw new ArgumentError(`[${what}] parameter "${name}" must be a tensor; got ${typeof t}`, { name });
  }
  return new Map(chosen.map(([name, t]) => [name.slice(start.length), t as Tensor]));
}
/**
 * The layer that an operation's name, its attributes (plain data, such as a parsed JSON object) and
 * parameters by name describe; `buildLayer(a.operation, a, layer.parameters)` for `a = layer.attributes()` is
 * the same function again. The layer shares the parameters' memory. Throws ArgumentError that names what is
 * wrong: an unknown operation, an attribute that is missing, unknown, of another type or outside its domain,
 * a parameter that is missing or unknown; and what the layer's constructor throws.
 */
export function buildLayer<K extends keyof BuiltLayers>(
  operation: K,
  attributes: object,
  parameters?: Parameters,
  options?: BuildOptions & { readonly builders?: undefined },
): BuiltLayers[K];
export function buildLayer(
  operation: string,
  attributes: object,
  parameters?: Parameters,
  options?: BuildOptions,
): Module;
export function buildLayer(
  operation: string,
  attributes: object,
  parameters: Parameters = {},
  options: BuildOptions = {},
): Module {
  const builders = options.builders ?? layerBuilders;
  const build = builders.get(operation);
  if (build === undefined) {
    throw new ArgumentError(
      `[buildLayer] there is no operation "${String(operation)}"; known: ${[...builders.keys()].join(", ")}`,
      { operation },
    );
  }
  if (!isObject(attributes)) {
    throw new ArgumentError(`[${operation}] attributes must be an object; got ${String(attributes)}`, {
      attributes,
    });
  }
  const { operation: own = operation, ...others } = attributes;
  if (own !== operation) {
    throw new ArgumentError(
      `[${operation}] attribute "operation" must be "${operation}" or absent; got ${String(own)}`,
      { attribute: "operation", value: own },
    );
  }
  return build(others, named(operation, parameters, options.prefix));
}
