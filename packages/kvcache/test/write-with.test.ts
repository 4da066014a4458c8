import { ArgumentError, getEngine, kvAppend, type Tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { KvCache, StateError } from "../src/index.ts";
import { engines } from "./engines.ts";
import { contents, expected, floats, idsFrom, poisonedCache, rowsFor, writeLayer } from "./fixtures.ts";

describe.each(engines)("writing a layer by a function on %s", (name) => {
  const engine = getEngine(name);
  const cacheOf = () => poisonedCache({ engine });
  const rows = (cache: ReturnType<typeof cacheOf>, which: "k" | "v", layer: number): Tensor => {
    const width = which === "k" ? cache.layout.groups[0]!.headDim : cache.layout.groups[0]!.valueHeadDim;
    return floats(rowsFor(cache, idsFrom(1, 6), layer, which), [6, 2, width], "float32", engine);
  };
  test("its rows are the step's", () => {
    using cache = cacheOf();
    using sequence = cache.open();
    const step = cache.reserve([{ sequence, tokens: 6 }]);
    for (const layer of [0, 1]) {
      using k = rows(cache, "k", layer);
      using v = rows(cache, "v", layer);
      const took = step.writeWith(layer, ({ kPages, vPages, slots }) =>
        kvAppend(k, v, kPages, vPages, slots),
      );
      expect(took).toBe(true);
    }
    step.commit(idsFrom(1, 6));
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, idsFrom(1, 6), layer));
  });
  test("a function that fails leaves the layer unwritten, also when it was written before", () => {
    using cache = cacheOf();
    using sequence = cache.open();
    using step = cache.reserve([{ sequence, tokens: 2 }]);
    for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(1, 2), layer);
    const fail = (): never => {
      throw new RangeError("kernel");
    };
    expect(() => step.writeWith(1, fail)).toThrow("kernel");
    step.view(0);
    expect(() => step.view(1)).toThrow(StateError);
    expect(() => step.commit()).toThrow("layer 1 of 2 has not written");
    writeLayer(cache, step, idsFrom(1, 2), 1);
    step.commit();
    expect(contents(cache, sequence, 1)).toEqual(expected(cache, idsFrom(1, 2), 1));
  });
  test("no such layer, or a step that is closed, calls nothing", () => {
    using cache = cacheOf();
    using sequence = cache.open();
    const step = cache.reserve([{ sequence, tokens: 1 }]);
    let calls = 0;
    const call = (): void => void calls++;
    for (const layer of [-1, 2, 0.5]) expect(() => step.writeWith(layer, call)).toThrow(ArgumentError);
    step.cancel();
    expect(() => step.writeWith(0, call)).toThrow(StateError);
    expect(calls).toBe(0);
  });
  test("pages that hold values in keys take finished rows only, and nothing is called", () => {
    const sizes = { layers: 1, numKvHeads: 2, headDim: 3, maxPages: 2 };
    using cache = new KvCache({ ...sizes, valuesInKeys: true, engine });
    using sequence = cache.open();
    using step = cache.reserve([{ sequence, tokens: 1 }]);
    let calls = 0;
    expect(step.writeWith(0, () => void calls++)).toBe(false);
    expect(calls).toBe(0);
    expect(() => step.view(0)).toThrow(StateError);
  });
});
