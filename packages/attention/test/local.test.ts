import "@heed/engine-cpu";
import { ArgumentError, getEngine, scope, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { causalSlidingWindowMask, GlobalAttention, LocalAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const BASE = { hiddenSize: 6, numHeads: 3, numKvHeads: 1, headDim: 4, rope: {} } as const;
const S = 9;

describe.each(engines)("LocalAttention on %s", (name) => {
  const engine = getEngine(name);
  const input = (change?: number): Tensor<"float64"> => {
    const x = createRng(4).normalArray(S * 6);
    if (change !== undefined) x[change * 6]! += 1;
    return upload(x, [1, S, 6], "float64", engine);
  };
  const create = (windowSize: number, isCausal?: boolean): LocalAttention =>
    LocalAttention.create({ ...BASE, windowSize, isCausal, engine, dtype: "float64", seed: 1 });
  /** Tokens whose output changes with token j's input. */
  const seenFrom = (layer: LocalAttention, j: number): number[] => {
    const [a, b] = [input(), input(j)].map((x) => toFloat64(layer.forward(x)));
    return Array.from(Array(S).keys()).filter((i) =>
      a!.slice(i * 6, i * 6 + 6).some((v, c) => v !== b![i * 6 + c]),
    );
  };

  test("is causal by default: token i sees the windowSize tokens up to itself", () => {
    scope(() => {
      expect(seenFrom(create(3), 4)).toEqual([4, 5, 6]);
      expect(seenFrom(create(1), 4)).toEqual([4]);
      expect(seenFrom(create(100), 4)).toEqual([4, 5, 6, 7, 8]);
    });
  });
  test("is two-sided without causality: token i sees j iff |i - j| < windowSize", () => {
    scope(() => {
      expect(seenFrom(create(3, false), 4)).toEqual([2, 3, 4, 5, 6]);
      expect(seenFrom(create(1, false), 4)).toEqual([4]);
      expect(seenFrom(create(3, false), 0)).toEqual([0, 1, 2]);
      expect(seenFrom(create(100, false), 4)).toEqual([...Array(S).keys()]);
    });
  });
  test("equals GlobalAttention under the causal sliding-window mask", () => {
    scope(() => {
      for (const windowSize of [1, 2, 5, 20]) {
        const local = create(windowSize);
        const global = new GlobalAttention(BASE, local.parameters);
        const attnMask = causalSlidingWindowMask(S, windowSize, { engine });
        assertClose(toFloat64(local.forward(input())), toFloat64(global.forward(input(), { attnMask })), {
          rel: 1e-14,
          abs: 1e-18,
        });
      }
    });
  });
  test("attributes say the window by its size, on either side of causality", () => {
    scope(() => {
      for (const isCausal of [true, false]) {
        const { windowSize, operation, ...rest } = create(5, isCausal).attributes();
        expect([windowSize, operation, rest.isCausal]).toEqual([5, "LocalAttention", isCausal]);
        expect(rest).not.toHaveProperty("window");
      }
    });
  });
  test("a window size that is no whole number of at least 1 is a typed error with the value", () => {
    for (const windowSize of [0, -1, 1.5, NaN, Infinity, "3" as unknown as number]) {
      expect(() => create(windowSize)).toThrow(ArgumentError);
      expect(() => create(windowSize)).toThrow(
        `[LocalAttention] windowSize must be a whole number of at least 1; got ${windowSize}`,
      );
    }
  });
});
