/** Every core method of an engine of the host against straight loops, and its memory. The engine is the parameter. */
import type { Engine } from "@heed/tensor";
import { coreSuite as computing } from "@heed/testkit/core";
import { memorySuite } from "./memory.ts";

export function coreSuite(engine: Engine): void {
  memorySuite(engine);
  computing(engine);
}
