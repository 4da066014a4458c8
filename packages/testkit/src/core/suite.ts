/** Every core method of an engine against straight loops, over dtypes, shapes and strides. The engine is the parameter. */
import type { Engine } from "@heed/tensor";
import { copySuite } from "./copy.ts";
import { elementwiseSuite } from "./elementwise.ts";
import { gatherSuite } from "./gather.ts";
import { matmulSuite } from "./matmul.ts";
import { reduceSuite } from "./reduce.ts";

export function coreSuite(engine: Engine): void {
  copySuite(engine);
  elementwiseSuite(engine);
  reduceSuite(engine);
  matmulSuite(engine);
  gatherSuite(engine);
}
