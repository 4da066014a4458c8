import { cpu } from "../../src/index.ts";
import { coreSuite } from "../core/suite.ts";

coreSuite(cpu());
