import { ropeSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) ropeSuite(name);
