import type { FusedOps } from "@heed/tensor";
import { linear } from "../core/matmul.ts";
import type { Device } from "../launch.ts";
import { attentionBackward } from "./attention/backward.ts";
import { attention, pagedAttention } from "./attention/index.ts";
import { kvAppend } from "./kv-append.ts";
import { normRopeAppend } from "./norm-rope-append.ts";
import { rmsNorm, rmsNormBackward } from "./rms-norm.ts";
import { rope } from "./rope.ts";
import { sealPages } from "./seal-pages.ts";

/** The fused operations of the engine, a line each; one that is not here runs in its composed form. */
export function fusedOps(device: Device): FusedOps {
  return {
    linear: linear(device),
    attention: attention(device),
    attentionBackward: attentionBackward(device),
    pagedAttention: pagedAttention(device),
    rmsNorm: rmsNorm(device),
    rmsNormBackward: rmsNormBackward(device),
    rope: rope(device),
    kvAppend: kvAppend(device),
    normRopeAppend: normRopeAppend(device),
    sealPages: sealPages(device),
  };
}
