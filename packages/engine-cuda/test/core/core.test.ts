import { getEngine } from "@heed/tensor";
import { coreSuite } from "@heed/testkit/core";
import { describe, setDefaultTimeout } from "bun:test";
import "../../src/index.ts";
import { emulatedMissing, ENGINE } from "../support.ts";
import { emulatedWith } from "./engines.ts";
import { batchSuite, linearSuite, productSuite } from "./products.ts";
import { indexSuite, largeSuite, longReduceSuite, softmaxRowsSuite } from "./rows.ts";

setDefaultTimeout(60_000); // properties of some 60 emulated launches each, on a machine that may be busy

if (emulatedMissing === undefined) {
  describe(`core methods on ${ENGINE}`, () => coreSuite(getEngine(ENGINE)));
  // One multiprocessor: tiles of 128. As many as no device has: tiles of 64.
  for (const multiprocessors of [1, 1000]) {
    const { engine, linear } = emulatedWith(multiprocessors);
    describe(engine.name, () => {
      productSuite(engine);
      batchSuite(engine);
      linearSuite(engine, linear);
    });
  }
  for (const narrow of [false, true]) {
    const { engine } = emulatedWith(2, narrow);
    describe(`kernels of rows and elements, ${narrow ? "one block for everything" : "many blocks"}`, () => {
      longReduceSuite(engine);
      softmaxRowsSuite(engine);
      indexSuite(engine);
      largeSuite(engine);
      if (narrow) batchSuite(engine);
    });
  }
}
