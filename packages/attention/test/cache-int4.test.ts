/** Layers over pages that are encoded in 4 bits when they are full: nothing about a layer changes. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import { type Engine, getEngine, scope, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { GlobalAttention, GroupedQueryAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 24;
const HEADS = { hiddenSize: HIDDEN, numHeads: 6, numKvHeads: 2, headDim: 40, rope: {}, qkNorm: {} } as const;
const PAGE = 32;
type Float = Tensor<"float32">;

/** A local layer, a global one, and a cache of a group for each. */
function decoder(engine: Engine, dtype: "float32" | "int4") {
  const shape = { numKvHeads: 2, headDim: 40, pageSize: PAGE, dtype, maxPages: 12 } as const;
  const groups = [
    { ...shape, layers: [0], window: 50, sinks: 1 },
    { ...shape, layers: [1], layout: "token-major" as const },
  ];
  const layers = [
    GroupedQueryAttention.create({ ...HEADS, window: { left: 49 }, engine, layerIndex: 0, seed: 1 }),
    GlobalAttention.create({ ...HEADS, engine, layerIndex: 1, seed: 2 }),
  ];
  return { layers, cache: new KvCache({ groups, engine }) };
}
/** Outputs of both layers for each of these numbers of tokens, one step each. */
function run(engine: Engine, dtype: "float32" | "int4", counts: readonly number[]): number[][][] {
  return scope(() => {
    const { layers, cache } = decoder(engine, dtype);
    const sequence = cache.open();
    const outputs = counts.map((tokens, seed) => {
      const x = upload(
        createRng(seed).normalArray(tokens * HIDDEN),
        [tokens, HIDDEN],
        "float32",
        engine,
      ) as Float;
      using step = cache.reserve([{ sequence, tokens }]);
      const out = layers.map((layer) => scope(() => [...toFloat64(layer.forward(x, { cache: step }))]));
      step.commit();
      cache.check();
      return out;
    });
    cache[Symbol.dispose]();
    return outputs;
  });
}
describe.each(engines)("layers over int4 pages on %s", (name) => {
  const engine = getEngine(name);

  test("before a page is full, outputs are those over floats", () => {
    const counts = [20, 1, 5, 1, 4];
    const [found, should] = [run(engine, "int4", counts), run(engine, "float32", counts)];
    found.forEach((step, n) =>
      step.forEach((out, layer) => assertClose(out, should[n]![layer]!, { rel: 1e-5 })),
    );
  });
  test("with encoded pages they are near to those, and not the same", () => {
    const counts = [70, 1, 30, 1, 1];
    const [found, should] = [run(engine, "int4", counts), run(engine, "float32", counts)];
    for (const n of [1, 2, 3, 4])
      for (const layer of [0, 1]) {
        const [a, b] = [found[n]![layer]!, should[n]![layer]!];
        const norm = (x: readonly number[]): number => Math.sqrt(x.reduce((s, y) => s + y * y, 0));
        const distance = norm(a.map((x, i) => x - b[i]!)) / norm(b);
        expect(distance).toBeGreaterThan(1e-4);
        expect(distance).toBeLessThan(0.15);
      }
    found[0]!.forEach((out, layer) => assertClose(out, should[0]![layer]!, { rel: 1e-5 })); // a step sees its own rows exactly
  });
});
