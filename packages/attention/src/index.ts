/** Attention layers for TypeScript on Bun. */
export * from "./attention-head.ts";
export {
  buildLayer,
  type BuildOptions,
  type BuiltLayers,
  type LayerBuilder,
  layerBuilders,
} from "./builders.ts";
export { DecoderAttention } from "./decoder-attention.ts";
export * from "./global.ts";
export { documentIds, documentPositions } from "./documents.ts";
export type {
  GroupedQueryAttentionCall,
  GroupedQueryAttentionGradients,
  GroupedQueryAttentionInputs,
  GroupedQueryAttentionVjp,
  GroupedQueryAttentionVjpOptions,
  KeysValuesGradients,
} from "./gqa-call.ts";
export { GroupedQueryAttention } from "./gqa.ts";
export type {
  GroupedQueryAttentionAttributes,
  GroupedQueryAttentionConfig,
  GroupedQueryAttentionOptions,
  LayerRopeOptions,
  ProjectionBias,
  QueryKeyNormOptions,
} from "./gqa-options.ts";
export type { PastKeysValues } from "./gqa-past.ts";
export { HFCheckpoint } from "./hf-checkpoint.ts";
export { attentionConfigFromHF, type HFAttentionConfig, type HFLayer } from "./hf-config.ts";
export type { JsonObject } from "./hf-fields.ts";
export { loadAttention, type LoadOptions, loadTensor } from "./hf-weights.ts";
export type { InitOptions, Layer, LayerAttributes, LayerGradients, LayerVjp, Module } from "./layer.ts";
export { Linear, type LinearAttributes, type LinearLayerOptions } from "./linear.ts";
export type {
  MultiHeadLatentAttentionCall,
  MultiHeadLatentAttentionInputs,
  MultiHeadLatentAttentionVjpOptions,
} from "./mla-call.ts";
export type {
  LatentRowsGradients,
  MultiHeadLatentAttentionGradients,
  MultiHeadLatentAttentionVjp,
  PastLatentRows,
} from "./mla-past.ts";
export { MultiHeadLatentAttention } from "./mla.ts";
export type {
  MultiHeadLatentAttentionAttributes,
  MultiHeadLatentAttentionConfig,
  MultiHeadLatentAttentionOptions,
} from "./mla-options.ts";
export * from "./local.ts";
export { causalSlidingWindowMask } from "./masks.ts";
export { type NormOptions, RMSNorm, type RMSNormAttributes, type RMSNormLayerOptions } from "./norm.ts";
export type { Parameters } from "./parameters.ts";
export * from "./qk-norm.ts";
export {
  type Positions,
  RotaryEmbedding,
  type RotaryEmbeddingConfig,
  type RotaryEmbeddingOptions,
} from "./rope.ts";
export type { RopeSections } from "./rope-options.ts";
export {
  type DynamicNtkScaling,
  type LinearScaling,
  type Llama3Scaling,
  type LongRopeScaling,
  type NoScaling,
  type NtkScaling,
  ropeAttentionFactor,
  ropeFrequencies,
  type RopeScaling,
  type YarnScaling,
  yarnSoftmaxScale,
} from "./rope-scaling.ts";
export * from "./sdpa.ts";
