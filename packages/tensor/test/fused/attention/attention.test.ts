import { attentionConformance } from "../../../../testkit/src/conformance/attention.ts";
import { engines } from "../../engines.ts";

for (const name of engines) attentionConformance(name);
