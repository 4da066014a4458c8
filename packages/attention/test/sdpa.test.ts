import "@heed/engine-cpu";
import { getEngine, type Nested, scope, tensor, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { ScaledDotProductAttention, scaledDotProductAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

describe.each(engines)("ScaledDotProductAttention on %s", (name) => {
  const engine = getEngine(name);
  const rows = (values: Nested): Tensor<"float64"> =>
    tensor(values, [1, 3, 1, 4], { dtype: "float64", engine });
  const q = [1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4];
  const k = [1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 7];
  const v = [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6];
  const known = (): [Tensor<"float64">, Tensor<"float64">, Tensor<"float64">] => [rows(q), rows(k), rows(v)];

  test("gives the known rows, causal and bidirectional", () => {
    scope(() => {
      const both = toFloat64(new ScaledDotProductAttention().forward(...known()));
      assertClose(both.slice(0, 8), [5, 16 / 3, 17 / 3, 6, 5, 16 / 3, 17 / 3, 6], { rel: 1e-15 });
      const causal = toFloat64(new ScaledDotProductAttention({ isCausal: true }).forward(...known()));
      assertClose(causal.slice(0, 8), [1, 2, 3, 4, 3, 4, 5, 6], { rel: 1e-15 });
      expect(toFloat64(scaledDotProductAttention(...known(), { isCausal: true }))).toEqual(causal);
    });
  });
  test("is the function with its options, whatever the call adds", () => {
    scope(() => {
      const random = (seed: number, shape: number[]) =>
        upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b)), shape, "float64", engine);
      const operands = [random(1, [2, 4, 3, 4]), random(2, [2, 2, 5, 4]), random(3, [2, 2, 5, 3])] as const;
      const fixed = { isCausal: true, window: { left: 2 }, scale: 0.3, softcap: 2, layout: "bhsd" } as const;
      const call = { queryOffset: 1, sinks: random(4, [4]), attnMask: random(5, [3, 5]) };
      const layer = new ScaledDotProductAttention(fixed);
      const expected = toFloat64(scaledDotProductAttention(...operands, { ...fixed, ...call }));
      expect(toFloat64(layer.forward(...operands, call))).toEqual(expected);
      const again = new ScaledDotProductAttention(JSON.parse(JSON.stringify(layer.attributes())));
      expect(again.attributes()).toEqual(layer.attributes());
      expect(toFloat64(again.forward(...operands, call))).toEqual(expected);
      const pass = layer.vjp(...operands, { ...call, attnMaskGradient: true });
      expect(toFloat64(pass.output)).toEqual(expected);
      const gradients = pass.backward(pass.output);
      expect(Object.entries(gradients).map(([key, t]) => `${key} ${t.shape}`)).toEqual([
        "q 2,4,3,4",
        "k 2,2,5,4",
        "v 2,2,5,3",
        "attnMask 3,5",
        "sinks 4",
      ]);
    });
  });
});
