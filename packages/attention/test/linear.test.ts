import "@heed/engine-cpu";
import { getEngine, memoryUsage, scope, toFloat64 } from "@heed/tensor";
import { assertClose, checkGradient, createRng, dotProduct } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { Linear } from "../src/index.ts";
import { engines } from "./engines.ts";
import { linearOracle } from "./support/oracle.ts";
import { upload } from "./support/problem.ts";

describe.each(engines)("Linear on %s", (name) => {
  const engine = getEngine(name);
  const rng = createRng(3);
  const [x, weight, bias, d] = [
    rng.normalArray(30),
    rng.normalArray(20),
    rng.normalArray(4),
    rng.normalArray(24),
  ];
  const make = (options: { bias: boolean }): Linear =>
    new Linear(
      { inFeatures: 5, outFeatures: 4, ...options },
      {
        weight: upload(weight, [4, 5], "float64", engine),
        ...(options.bias && { bias: upload(bias, [4], "float64", engine) }),
      },
    );

  test("is x @ weight^T + bias over any leading axes", () => {
    scope(() => {
      for (const shape of [
        [6, 5],
        [2, 3, 5],
        [1, 2, 3, 5],
      ]) {
        const y = make({ bias: true }).forward(upload(x, shape, "float64", engine));
        expect(y.shape).toEqual([...shape.slice(0, -1), 4]);
        assertClose(toFloat64(y), linearOracle(x, weight, bias, 5), { rel: 1e-15, abs: 1e-15 });
      }
      assertClose(
        toFloat64(make({ bias: false }).forward(upload(x, [6, 5], "float64", engine))),
        linearOracle(x, weight, undefined, 5),
        { rel: 1e-15, abs: 1e-15 },
      );
    });
  });
  test("gradients of input, weight and bias are those of central differences", () => {
    scope(() => {
      const pass = make({ bias: true }).vjp(upload(x, [2, 3, 5], "float64", engine));
      const { input, parameters } = pass.backward(upload(d, [2, 3, 4], "float64", engine));
      checkGradient((v) => dotProduct(d, linearOracle(v, weight, bias, 5)), x, toFloat64(input), {
        name: "input",
      });
      checkGradient(
        (v) => dotProduct(d, linearOracle(x, v, bias, 5)),
        weight,
        toFloat64(parameters.get("weight")!),
        { name: "weight" },
      );
      checkGradient(
        (v) => dotProduct(d, linearOracle(x, weight, v, 5)),
        bias,
        toFloat64(parameters.get("bias")!),
        { name: "bias" },
      );
      expect([
        ...make({ bias: false })
          .vjp(upload(x, [6, 5], "float64", engine))
          .backward(upload(d, [6, 4], "float64", engine))
          .parameters.keys(),
      ]).toEqual(["weight"]);
    });
  });
  test("round-trips by attributes and parameters, and is created from a seed", () => {
    scope(() => {
      const layer = Linear.create({
        inFeatures: 5,
        outFeatures: 4,
        bias: true,
        engine,
        dtype: "float64",
        seed: 4,
      });
      const again = new Linear(JSON.parse(JSON.stringify(layer.attributes())), layer.parameters);
      const at = upload(x, [6, 5], "float64", engine);
      expect(toFloat64(again.forward(at))).toEqual(toFloat64(layer.forward(at)));
      expect(
        toFloat64(Linear.create({ ...layer.attributes(), engine, dtype: "float64", seed: 4 }).forward(at)),
      ).toEqual(toFloat64(layer.forward(at)));
      expect(() => Linear.create({ inFeatures: 5, outFeatures: 4, engine, seed: -1 })).toThrow("seed");
    });
  });
  test("leaves nothing behind", () => {
    const before = memoryUsage().storages;
    {
      using layer = Linear.create({ inFeatures: 5, outFeatures: 4, bias: true, engine });
      using at = upload(x, [6, 5], "float32", engine);
      using pass = layer.vjp(at);
      using output = pass.output;
      using _gradients = pass.backward(output);
    }
    expect(memoryUsage().storages).toBe(before);
  });
});
