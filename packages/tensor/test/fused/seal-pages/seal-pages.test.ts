import { sealPagesSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) sealPagesSuite(name);
