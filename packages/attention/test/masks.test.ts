import "@heed/engine-cpu";
import { ArgumentError, getEngine, memoryUsage, scope, tensor, toFloat64 } from "@heed/tensor";
import { createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { causalSlidingWindowMask, scaledDotProductAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

describe.each(engines)("causalSlidingWindowMask on %s", (name) => {
  const engine = getEngine(name);
  const size = fc.integer({ min: 1, max: 40 });

  test("lets i see j iff 0 <= i - j < window, for any sizes", () => {
    fc.assert(
      fc.property(size, size, (S, window) =>
        scope(() => {
          const mask = causalSlidingWindowMask(S, window, { engine });
          expect(String(mask)).toBe(`bool[1, 1, ${S}, ${S}]`);
          const expected = Array.from({ length: S * S }, (_, n) => {
            const distance = Math.floor(n / S) - (n % S);
            return distance >= 0 && distance < window ? 1 : 0;
          });
          expect([...toFloat64(mask)]).toEqual(expected);
          expect([...mask.contiguous().data]).toEqual(expected);
        }),
      ),
    );
  });
  test.each(["float64", "float32", "float16", "bfloat16"] as const)(
    "masks as isCausal and a window do, in its view and copied, for every batch and head, %s",
    (dtype) => {
      scope(() => {
        const [q, k] = [2, 1].map((heads, i) =>
          upload(createRng(i).normalArray(2 * 70 * heads * 4), [2, 70, heads, 4], dtype, engine),
        );
        for (const window of [1, 17, 1000]) {
          const mask = causalSlidingWindowMask(70, window, { engine });
          const expected = toFloat64(
            scaledDotProductAttention(q!, k!, k!, { isCausal: true, window: { left: window - 1 } }),
          );
          for (const attnMask of [mask, mask.contiguous()])
            expect(toFloat64(scaledDotProductAttention(q!, k!, k!, { attnMask }))).toEqual(expected);
        }
      });
    },
  );
  test("keeps a NaN outside the window from changing anything", () => {
    scope(() => {
      const rows = (poison: number) =>
        tensor(
          Float64Array.from({ length: 20 }, (_, n) => (n < 8 ? poison : Math.sin(n))),
          [1, 5, 1, 4],
          { engine },
        );
      const attnMask = causalSlidingWindowMask(5, 2, { engine });
      const last = (poison: number) =>
        toFloat64(
          scaledDotProductAttention(rows(0), rows(poison), rows(poison), { attnMask }).slice(1, 3, 5),
        );
      expect(last(NaN)).toEqual(last(0));
    });
  });
  test("takes memory of its length, not its square, and gives it back", () => {
    const before = memoryUsage();
    {
      using mask = causalSlidingWindowMask(100_000, 4096, { engine });
      expect(memoryUsage().bytes - before.bytes).toBe(199_999);
      const corner = scope(() => toFloat64(mask.slice(2, 99_999).slice(3, 95_903, 95_905)));
      expect([...corner]).toEqual([0, 1]);
    }
    expect(memoryUsage().storages).toBe(before.storages);
    expect(memoryUsage().bytes).toBe(before.bytes);
  });
  test("of no tokens is empty", () => {
    scope(() => expect(causalSlidingWindowMask(0, 3, { engine }).shape).toEqual([1, 1, 0, 0]));
  });
  test("sizes that make no sense are typed errors with the value", () => {
    for (const [S, window, message] of [
      [-1, 2, "S must be a whole number from 0 to 33554431; got -1"],
      [2.5, 2, "got 2.5"],
      [2 ** 26, 2, "got 67108864"],
      [NaN, 2, "got NaN"],
      [4, 0, "window must be a whole number of at least 1; got 0"],
      [4, 1.5, "got 1.5"],
      [4, Infinity, "got Infinity"],
      ["4", 1, "got 4"],
    ] as const) {
      const make = (): unknown => causalSlidingWindowMask(S as number, window, { engine });
      expect(make).toThrow(ArgumentError);
      expect(make).toThrow(message);
    }
  });
});
