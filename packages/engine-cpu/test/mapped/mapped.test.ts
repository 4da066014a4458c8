import { describe, expect, test } from "bun:test";
import { availableIsas } from "../../src/index.ts";
import { missing } from "../../src/native.ts";
import { bun, expectTestsPass } from "../child.ts";

// A kernel that reads where no memory is ends its process.
describe.skipIf(missing !== undefined)("operands that end where memory ends", () => {
  const CHILD = "./test/mapped/guard.child.ts";
  test.each(missing === undefined ? availableIsas() : [])(
    "no kernel of %s reads or writes past one",
    (isa) => expectTestsPass(CHILD, { HEED_CPU_TARGET: isa }, 25),
    { timeout: 120_000 },
  );
  test("and the guard would tell: a read past the end ends the process", () => {
    const { exitCode, text } = bun(["test", CHILD, "-t", "the guard holds"], { HEED_READ_PAST_END: "1" });
    expect(exitCode).not.toBe(0);
    expect(text).not.toMatch(/^\s*\d+ (pass|fail)$/m); // no summary: it did not fail, it died
  });
});
