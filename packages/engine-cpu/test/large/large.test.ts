import { allocate, LARGEST_BUFFER, memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { availableIsas, portable } from "../../src/index.ts";
import { partFor } from "../../src/large-memory.ts";
import { missing } from "../../src/native.ts";
import { expectTestsPass } from "../child.ts";

// A touch of memory that is not there ends its process.
const TIMEOUT = { timeout: 120_000 };
describe.skipIf(missing !== undefined)("memory past 4 GiB", () => {
  test(
    "is seen in parts, which go with it",
    () => expectTestsPass("./test/large/memory.child.ts", {}, 15),
    TIMEOUT,
  );
  test.each(missing === undefined ? availableIsas() : [])(
    "is what kernels of %s compute in",
    (isa) => expectTestsPass("./test/large/kernels.child.ts", { HEED_CPU_TARGET: isa }, 33),
    TIMEOUT,
  );
});
test("the portable engine has none, says why, and keeps nothing", () => {
  const before = memoryUsage();
  for (const bytes of [LARGEST_BUFFER + 1, 64 * 2 ** 30]) {
    const refused = (): unknown => allocate(portable(), "uint8", [bytes]);
    expect(refused).toThrow(OutOfMemoryError);
    expect(refused).toThrow(
      /an ArrayBuffer ends at 4294967296; make several tensors, or use the engine "cpu"/,
    );
  }
  expect(memoryUsage()).toEqual(before);
});
test("a part holds what it is for, lies in the memory and fits an ArrayBuffer", () => {
  const problem = fc
    .tuple(fc.integer({ min: LARGEST_BUFFER + 1, max: 2 ** 40 }), fc.double({ min: 0, max: 1, noNaN: true }))
    .chain(([total, x]) => {
      const at = Math.floor(x * total);
      const most = Math.min(LARGEST_BUFFER, total - at);
      return fc.record({
        total: fc.constant(total),
        at: fc.constant(at),
        bytes: fc.integer({ min: 0, max: most }),
      });
    });
  fc.assert(
    fc.property(problem, ({ total, at, bytes }) => {
      const { start, length } = partFor(at, bytes, total);
      expect(start).toBeGreaterThanOrEqual(0);
      expect(length).toBeGreaterThan(0);
      expect(start).toBeLessThanOrEqual(at);
      expect(start + length).toBeGreaterThanOrEqual(at + bytes);
      expect(start + length).toBeLessThanOrEqual(total);
      expect(length).toBeLessThanOrEqual(LARGEST_BUFFER);
    }),
    { numRuns: 2000 },
  );
});
test("an empty view at the end has a part as well", () => {
  expect(partFor(2 ** 33, 0, 2 ** 33).length).toBeGreaterThan(0);
});
test("small views all over a memory need few parts", () => {
  const total = 64 * 2 ** 30;
  const starts = new Set<number>();
  for (let at = 0; at < total; at += 2 ** 20 + 4) starts.add(partFor(at, 4096, total).start);
  expect(starts.size).toBeLessThanOrEqual(256);
});
