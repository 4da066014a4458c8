import { linearSuite } from "@heed/testkit/conformance";
import { engines } from "../../engines.ts";

for (const name of engines) linearSuite(name);
