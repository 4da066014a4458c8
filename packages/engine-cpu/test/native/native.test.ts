import { describe, test } from "bun:test";
import { availableIsas } from "../../src/index.ts";
import { missing } from "../../src/native.ts";
import { expectTestsPass } from "../child.ts";

// A crash ends a test run without a summary, so each instruction set has processes of its own.
const TIMEOUT = { timeout: 240_000 };
describe.skipIf(missing !== undefined)("native kernels", () => {
  const isas = missing === undefined ? availableIsas() : [];
  test.each(isas)(
    "every core method on %s agrees with straight loops",
    (isa) => {
      expectTestsPass("./test/native/core.child.ts", { HEED_CPU_TARGET: isa }, 250);
    },
    TIMEOUT,
  );
  test.each(isas)(
    "every fused operation on %s agrees with its composed form",
    (isa) => {
      expectTestsPass("./test/native/fused.child.ts", { HEED_CPU_TARGET: isa }, 106);
    },
    TIMEOUT,
  );
  test.each(isas)(
    "on %s the number of threads changes no bit",
    (isa) => {
      expectTestsPass("./test/native/threads.child.ts", { HEED_CPU_TARGET: isa }, 40);
    },
    TIMEOUT,
  );
});
