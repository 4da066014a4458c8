import { normRopeAppendSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) normRopeAppendSuite(name);
