import {
  attentionBackwardSuite,
  attentionSuite,
  kvAppendSuite,
  linearSuite,
  normRopeAppendSuite,
  pagedAttentionSuite,
  rmsNormSuite,
  ropeSuite,
  sealPagesSuite,
} from "@heed/testkit/conformance";
import "../src/index.ts";
import { emulatedMissing, ENGINE } from "./support.ts";

// Every fused operation on the emulated device, against the oracles: in its composed form from the core kernels, and by its own
// kernel where there is one. An emulated launch costs some hundred times a native call, so fewer problems are drawn.
if (emulatedMissing === undefined) {
  for (const suite of [
    attentionSuite,
    attentionBackwardSuite,
    pagedAttentionSuite,
    kvAppendSuite,
    sealPagesSuite,
    normRopeAppendSuite,
    linearSuite,
    rmsNormSuite,
    ropeSuite,
  ])
    suite(ENGINE, { runs: 12 });
}
