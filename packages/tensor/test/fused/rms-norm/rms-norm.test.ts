import { rmsNormSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) rmsNormSuite(name);
