/** The kernels at every instruction set that this processor has besides the one in use. */
import { availableIsas, isa, selectIsa } from "@heed/engine-cpu";
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
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";

const inUse = engines.includes("cpu") ? isa() : undefined;
const others = inUse === undefined ? [] : availableIsas().filter((name) => name !== inUse);

describe.each(others)("instruction set %s", (name) => {
  beforeAll(() => selectIsa(name));
  afterAll(() => selectIsa(inUse));
  test("is in use", () => expect(isa()).toBe(name));
  for (const suite of [
    attentionSuite,
    attentionBackwardSuite,
    pagedAttentionSuite,
    kvAppendSuite,
    normRopeAppendSuite,
    sealPagesSuite,
    ropeSuite,
    rmsNormSuite,
    linearSuite,
  ]) {
    suite("cpu", { forms: ["require"], runs: 20 });
  }
});
