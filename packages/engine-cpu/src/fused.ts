import type { FusedOp, FusedOps } from "@heed/tensor";
import {
  type Block,
  writeAttention,
  writeAttentionBackward,
  writeKvAppend,
  writeLinear,
  writeNormRopeAppend,
  writePagedAttention,
  writeRmsNorm,
  writeRmsNormBackward,
  writeRope,
  writeSealPages,
} from "@heed/tensor/native";
import type { Entry, Native } from "./native.ts";

/** A kernel that takes every plan: writes the plan's block and calls the entry point. */
function kernel<Plan>(
  native: Native,
  entry: Entry,
  write: (block: Block, plan: Plan) => void,
): FusedOp<Plan> {
  const { block } = native;
  return {
    refusal: () => undefined,
    run: (plan) => {
      write(block, plan);
      native.run(entry);
    },
  };
}
/** The fused operations of the native engine; there is a kernel for each. */
export function fusedOps(native: Native): Required<FusedOps> {
  const { symbols } = native;
  return {
    linear: kernel(native, symbols.heed_matmul_run, writeLinear),
    rope: kernel(native, symbols.heed_rope_run, writeRope),
    rmsNorm: kernel(native, symbols.heed_rms_norm_run, writeRmsNorm),
    rmsNormBackward: kernel(native, symbols.heed_rms_norm_backward_run, writeRmsNormBackward),
    attention: kernel(native, symbols.heed_attention_run, writeAttention),
    attentionBackward: kernel(native, symbols.heed_attention_backward_run, writeAttentionBackward),
    pagedAttention: kernel(native, symbols.heed_paged_attention_run, writePagedAttention),
    kvAppend: kernel(native, symbols.heed_kv_append_run, writeKvAppend),
    normRopeAppend: kernel(native, symbols.heed_norm_rope_append_run, writeNormRopeAppend),
    sealPages: kernel(native, symbols.heed_seal_pages_run, writeSealPages),
  };
}
