import "@heed/engine-cpu";
import { getEngine, memoryUsage, scope, toFloat64 } from "@heed/tensor";
import { assertClose, createRng, rmsNormBackwardOracle, rmsNormOracle } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { RMSNorm } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

describe.each(engines)("RMSNorm on %s", (name) => {
  const engine = getEngine(name);
  const [x, weight, d] = [1, 2, 3].map((seed) => createRng(seed).normalArray(24)) as [
    Float64Array,
    Float64Array,
    Float64Array,
  ];

  test.each([
    [[4], false],
    [[4], true],
    [[3, 4], false],
    [[2, 3, 4], true],
  ] as const)("normalises over the last axes %p, 1 + weight: %p, with gradients", (shape, unitOffset) => {
    scope(() => {
      const n = shape.reduce((a: number, b) => a * b, 1);
      const w = weight.slice(0, n);
      const layer = new RMSNorm(
        { shape, eps: 1e-3, unitOffset },
        { weight: upload(w, shape, "float64", engine) },
      );
      const at = upload(x, [2, 3, 4], "float64", engine);
      const oracle = { n, eps: 1e-3, weight: w, unitOffset };
      assertClose(toFloat64(layer.forward(at)), rmsNormOracle(x, oracle).y, { rel: 1e-14 });
      const { input, parameters } = layer.vjp(at).backward(upload(d, [2, 3, 4], "float64", engine));
      const { dx, dWeight } = rmsNormBackwardOracle(x, d, oracle);
      assertClose(toFloat64(input), dx, { rel: 1e-13 });
      assertClose(toFloat64(parameters.get("weight")!), dWeight, { rel: 1e-13 });
      expect(parameters.get("weight")!.shape).toEqual([...shape]);
      const again = new RMSNorm(JSON.parse(JSON.stringify(layer.attributes())), layer.parameters);
      expect(toFloat64(again.forward(at))).toEqual(toFloat64(layer.forward(at)));
    });
  });
  test("is created as the plain normalisation, with either kind of weight", () => {
    scope(() => {
      const at = upload(x, [6, 4], "float64", engine);
      const { y } = rmsNormOracle(x, { n: 4, eps: 1e-6 });
      for (const unitOffset of [false, true]) {
        assertClose(
          toFloat64(RMSNorm.create({ shape: [4], unitOffset, engine, dtype: "float64" }).forward(at)),
          y,
          { rel: 1e-14 },
        );
      }
    });
  });
  test("a float32 weight beside a 16-bit input keeps its dtype in the gradient", () => {
    scope(() => {
      const layer = RMSNorm.create({ shape: [4], engine });
      const at = upload(x, [6, 4], "bfloat16", engine);
      const pass = layer.vjp(at);
      const { input, parameters } = pass.backward(pass.output);
      expect([pass.output.dtype, input.dtype, parameters.get("weight")!.dtype]).toEqual([
        "bfloat16",
        "bfloat16",
        "float32",
      ]);
    });
  });
  test("bad options are typed errors, and nothing is left behind", () => {
    const before = memoryUsage().storages;
    expect(() => RMSNorm.create({ shape: [], engine })).toThrow("rank of shape");
    expect(() => RMSNorm.create({ shape: [0], engine })).toThrow("shape");
    expect(() => RMSNorm.create({ shape: [4], eps: -1, engine })).toThrow("eps");
    expect(memoryUsage().storages).toBe(before);
  });
});
