/** Tensors, engines and the operations that attention layers are made of. */
export * from "./core/dtype.ts";
export * from "./core/errors.ts";
export { adopt, scope, unscoped } from "./core/scope.ts";
export { broadcastShapes, contiguousStrides, isContiguous, type Shape, sizeOf } from "./core/shape.ts";
export {
  type HostPart,
  LARGEST_BUFFER,
  type Leak,
  type LeakTracker,
  type Memory,
  memoryUsage,
  type MemoryUsage,
  resetPeakMemory,
  Storage,
  trackLeaks,
} from "./core/storage.ts";
export { allocate, show, Tensor } from "./core/tensor.ts";
export type { BinaryOp, Captured, Engine, ReduceOp, UnaryOp } from "./engine/engine.ts";
export type { FusedMode, FusedOp, FusedOps } from "./engine/fused.ts";
export {
  type Recorded,
  recordTape,
  type Tape,
  type TapeInstruction,
  type TapeOperand,
} from "./engine/tape.ts";
export { recheck, unrecorded } from "./engine/recorder.ts";
export {
  engineNames,
  getEngine,
  registerEngine,
  type RegisterOptions,
  setDefaultEngine,
} from "./engine/registry.ts";
export { cast } from "./ops/cast.ts";
export { hostIntegers } from "./ops/check.ts";
export { concat, copyInto } from "./ops/concat.ts";
export * from "./ops/create.ts";
export * from "./ops/elementwise.ts";
export { gather, scatterAdd } from "./ops/gather.ts";
export { matmul, type MatmulDType, type MatmulOptions } from "./ops/matmul.ts";
export { randn, type RandomOptions, uniform } from "./ops/random.ts";
export * from "./ops/reduce.ts";
export { softmax } from "./ops/softmax.ts";
export type { ScoreStage } from "./fused/attention/composed.ts";
export * from "./fused/attention/index.ts";
export type { DropoutRule } from "./fused/attention/dropout.ts";
export type { AttentionOptions, Dropout, ScoreOptions, Window } from "./fused/attention/options.ts";
export type {
  AttentionBackwardPlan,
  AttentionDims,
  AttentionGradients,
  AttentionPlan,
  ScoreRules,
} from "./fused/attention/plan.ts";
export { kvAppend } from "./fused/kv-append/index.ts";
export type { KvAppendPlan } from "./fused/kv-append/plan.ts";
export { linear, linearBackward, type LinearGradients, type LinearOptions } from "./fused/linear/index.ts";
export type { LinearPlan } from "./fused/linear/plan.ts";
export { normRopeAppend } from "./fused/norm-rope-append/index.ts";
export type { NormOfHeads, NormRopeAppendOptions, RopeOfHeads } from "./fused/norm-rope-append/options.ts";
export type { NormRopeAppendPlan } from "./fused/norm-rope-append/plan.ts";
export {
  pagedAttention,
  type PagedAttentionOptions,
  pagedAttentionWithLse,
} from "./fused/paged-attention/index.ts";
export type { PagedAttentionPlan, PagedDims, PagedView, PageTable } from "./fused/paged-attention/plan.ts";
export type { AppendTarget, BlockTableReader } from "./fused/paged-attention/reader.ts";
export {
  type PageRole,
  type Pages,
  type QuantisedGroups,
  type QuantisedPages,
  type QuantisedRows,
  showPages,
} from "./fused/quantised/pages.ts";
export { sealPages } from "./fused/seal-pages/index.ts";
export type { SealPagesPlan } from "./fused/seal-pages/plan.ts";
export { rmsNorm, rmsNormBackward, type RmsNormGradients } from "./fused/rms-norm/index.ts";
export type { RmsNormOptions } from "./fused/rms-norm/options.ts";
export type { RmsNormBackwardPlan, RmsNormPlan } from "./fused/rms-norm/plan.ts";
export { rope, ropeBackward } from "./fused/rope/index.ts";
export type { RopeOptions } from "./fused/rope/options.ts";
export type { RopePlan } from "./fused/rope/plan.ts";
export type { ByteSource } from "./io/byte-source.ts";
export * from "./io/safetensors.ts";
export * from "./io/safetensors-write.ts";
export type { FileEntry } from "./io/safetensors-header.ts";
