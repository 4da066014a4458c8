import "@heed/engine-cpu";
import { getEngine, memoryUsage, scope, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { adjacent, Projections } from "../src/projections.ts";
import { engines } from "./engines.ts";
import { linearOracle } from "./support/oracle.ts";
import { upload } from "./support/problem.ts";

describe.each(engines)("Projections on %s", (name) => {
  const engine = getEngine(name);
  const random = (seed: number, shape: number[]): Tensor<"float64"> =>
    upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b, 1)), shape, "float64", engine);
  const rows = (t: Tensor, ...cuts: readonly (readonly [number, number])[]): Tensor[] =>
    cuts.map(([from, to]) => t.slice(0, from, to));

  test("blocks of rows in order are one tensor over the same memory", () => {
    scope(() => {
      const all = random(1, [7, 3]);
      const whole = adjacent(rows(all, [1, 3], [3, 4], [4, 7]))!;
      expect([whole.shape, whole.offset, whole.storage === all.storage]).toEqual([[6, 3], 3, true]);
      expect(toFloat64(whole)).toEqual(toFloat64(all).subarray(3));
    });
  });
  test("blocks that overlap, leave a gap, come in another order or from elsewhere are not", () => {
    scope(() => {
      const all = random(1, [7, 3]);
      for (const blocks of [
        rows(all, [0, 2], [0, 2]),
        rows(all, [0, 2], [3, 5]),
        rows(all, [2, 4], [0, 2]),
        [all, random(2, [2, 3])],
        [...rows(all, [0, 2]), all.slice(0, 2, 4).slice(1, 0, 2)],
        [],
      ]) {
        expect(adjacent(blocks)).toBeUndefined();
      }
    });
  });
  test("give each map its own rows, whether merged or not, with biases or without", () => {
    scope(() => {
      const x = random(3, [2, 4, 3]);
      const d = [2, 1, 4].map((n, i) => random(20 + i, [2, 4, n]));
      const all = random(4, [7, 3]);
      const bias = random(5, [7]);
      const cuts = [
        [0, 2],
        [2, 3],
        [3, 7],
      ] as const;
      const weights = rows(all, ...cuts);
      const biases = rows(bias, ...cuts);
      const copy = (t: Tensor): Tensor => upload(toFloat64(t), t.shape, "float64", engine);
      const parts = (w: Tensor[], b: (Tensor | undefined)[]) =>
        w.map((weight, i) => ({ weight, bias: b[i] }));
      const none = [undefined, undefined, undefined];
      for (const [list, isMerged] of [
        [parts(weights, biases), true],
        [parts(weights, none), true],
        [parts(weights, [biases[0], undefined, biases[2]]), false],
        [parts(weights, biases.map(copy)), false],
        [parts(weights.map(copy), biases), false],
        [parts([weights[2]!, weights[0]!, weights[1]!], none), false],
      ] as const) {
        using projections = new Projections(list);
        expect(projections.isMerged).toBe(isMerged);
        projections.forward(x).forEach((y, i) => {
          const { weight, bias: b } = list[i]!;
          assertClose(toFloat64(y), linearOracle(toFloat64(x), toFloat64(weight), b && toFloat64(b), 3), {
            rel: 1e-15,
            abs: 1e-15,
          });
        });
      }
      using merged = new Projections(parts(weights, biases));
      using split = new Projections(parts(weights.map(copy), biases));
      const [a, b] = [merged.backward(x, d), split.backward(x, d)];
      assertClose(toFloat64(a.x), toFloat64(b.x), { rel: 1e-14 });
      a.parts.forEach((g, i) => {
        assertClose(toFloat64(g.weight), toFloat64(b.parts[i]!.weight), { rel: 1e-14 });
        assertClose(toFloat64(g.bias), toFloat64(b.parts[i]!.bias), { rel: 1e-14 });
      });
    });
  });
  test("leave nothing behind, also where weights merge and biases do not", () => {
    const before = memoryUsage().storages;
    scope(() => {
      const all = random(1, [4, 3]);
      const [a, b] = rows(all, [0, 2], [2, 4]);
      new Projections([
        { weight: a!, bias: random(2, [2]) },
        { weight: b!, bias: random(3, [2]) },
      ])[Symbol.dispose]();
      new Projections([
        { weight: a!, bias: undefined },
        { weight: b!, bias: undefined },
      ])[Symbol.dispose]();
    });
    expect(memoryUsage().storages).toBe(before);
  });
});
