/** Attention layers for TypeScript on Bun. */
export type { GroupedQueryAttentionCall, GroupedQueryAttentionVjpOptions } from "./gqa-call.ts";
export { GroupedQueryAttention } from "./gqa.ts";
export type {
  GroupedQueryAttentionAttributes,
  GroupedQueryAttentionConfig,
  GroupedQueryAttentionOptions,
  LayerRopeOptions,
  ProjectionBias,
} from "./gqa-options.ts";
export type { InitOptions, Layer, LayerAttributes, LayerGradients, LayerVjp, Module } from "./layer.ts";
export { Linear, type LinearAttributes, type LinearLayerOptions } from "./linear.ts";
export { type NormOptions, RMSNorm, type RMSNormAttributes, type RMSNormLayerOptions } from "./norm.ts";
export type { Parameters } from "./parameters.ts";
export {
  type Positions,
  RotaryEmbedding,
  type RotaryEmbeddingConfig,
  type RotaryEmbeddingOptions,
} from "./rope.ts";
export {
  type LinearScaling,
  type Llama3Scaling,
  type NoScaling,
  ropeFrequencies,
  type RopeScaling,
} from "./rope-scaling.ts";
export * from "./sdpa.ts";
