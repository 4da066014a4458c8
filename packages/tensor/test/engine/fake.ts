import { type Engine, type FusedOps, getEngine } from "@heed/tensor";
import "../engines.ts";

/** The portable engine under another name, with the kernels of `fused`. */
export function fakeEngine(fused: FusedOps = {}, name = "fake"): Engine {
  return Object.assign(Object.create(getEngine("portable")) as Engine, { fused, name });
}
