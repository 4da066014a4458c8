import { attentionBackwardSuite, attentionSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) {
  attentionSuite(name);
  attentionBackwardSuite(name);
}
