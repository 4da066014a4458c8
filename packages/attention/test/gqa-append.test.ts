/** The one pass from projections to pages against norm, rotation and append one after the other: the same bits. */
import { KvCache } from "@heed/kvcache";
import { type BlockTableReader, type FloatDType, getEngine, scope, type Tensor } from "@heed/tensor";
import { floatView, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { GroupedQueryAttention, type GroupedQueryAttentionOptions } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 20;
const BASE: GroupedQueryAttentionOptions = { hiddenSize: HIDDEN, numHeads: 6, numKvHeads: 2, headDim: 10 };
const KINDS: Readonly<Record<string, GroupedQueryAttentionOptions>> = {
  plain: BASE,
  rotated: { ...BASE, rope: {} },
  "partly rotated, interleaved, biased": {
    ...BASE,
    rope: { rotaryDim: 4, pairing: "interleaved" },
    bias: true,
  },
  "normalised by heads": { ...BASE, rope: {}, qkNorm: { eps: 0.1 } },
  "normalised, unit offset, no rotation": { ...BASE, qkNorm: { unitOffset: true } },
  "norm of the projection, tied value": {
    ...BASE,
    rope: {},
    tiedValue: true,
    qkNorm: { over: "projection" },
  },
  "norm of the projection, merged weight": {
    ...BASE,
    rope: { scaling: { type: "yarn", factor: 4, originalMaxPositions: 8 } },
    mergedQkv: true,
    qkNorm: { over: "projection" },
  },
  "multi-query": { ...BASE, numKvHeads: 1, rope: {}, qkNorm: {} },
};
const STEPS: readonly (readonly number[])[] = [
  [5, 0, 2],
  [1, 1, 1],
  [0, 3, 1],
  [1, 0, 0],
]; // tokens of three sequences

/** The bytes of a tensor, so that NaN and -0 count. */
function bytes(t: Tensor): Uint8Array {
  return scope(() => {
    const { data } = t.contiguous();
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  });
}
/** The same step for a layer that must write finished rows. */
function finishedRowsOnly(step: BlockTableReader): BlockTableReader {
  return {
    positions: step.positions,
    write: (layer, k, v) => step.write(layer, k, v),
    view: (layer) => step.view(layer),
  };
}
/** The same step, counting the rows that are not written by `write`. */
function counted(step: BlockTableReader, count: () => void): BlockTableReader {
  return {
    ...finishedRowsOnly(step),
    writeWith: (layer, append) => step.writeWith!(layer, (target) => (count(), append(target))),
  };
}
describe.each(engines)("a step of GroupedQueryAttention on %s", (name) => {
  const engine = getEngine(name);
  /** Outputs and pages of all steps, as bytes, and how many appends were fused. */
  function run(
    layer: GroupedQueryAttention,
    pageDtype: FloatDType,
    dtype: FloatDType,
    isFused: boolean,
  ): { readonly bits: Uint8Array[]; readonly fused: number } {
    return scope(() => {
      const { numKvHeads, headDim } = layer.config;
      const cache = new KvCache({
        layers: 1,
        numKvHeads,
        headDim,
        maxPages: 9,
        pageSize: 4,
        dtype: pageDtype,
        engine,
      });
      const sequences = [cache.open(), cache.open(), cache.open()];
      const rng = createRng(3);
      let fused = 0;
      const bits = STEPS.flatMap((tokens) => {
        const T = tokens.reduce((a, b) => a + b, 0);
        const x = upload(rng.normalArray(T * HIDDEN), [T, HIDDEN], dtype, engine);
        using step = cache.reserve(tokens.map((n, i) => ({ sequence: sequences[i]!, tokens: n })));
        const reader = isFused ? counted(step, () => fused++) : finishedRowsOnly(step);
        const output = bytes(layer.forward(x, { cache: reader }));
        const { kPages, vPages, table } = floatView(step.view(0));
        const written = [...table.slots.data].flatMap((slot) =>
          [kPages, vPages].map((pages) => bytes(pages.select(0, Math.floor(slot / 4)).select(1, slot % 4))),
        );
        step.commit();
        return [output, ...written];
      });
      return { bits, fused };
    });
  }
  const dtypes = [
    ["float32", "float32"],
    ["float32", "bfloat16"],
    ["float64", "float64"],
    ["float16", "float16"],
    ["bfloat16", "bfloat16"],
    ["bfloat16", "float32"],
  ] as const;
  const cases = Object.keys(KINDS).flatMap((kind) => dtypes.map((d) => [kind, ...d] as const));
  test.each(cases)("%s, %s over pages of %s", (kind, dtype, pageDtype) => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...KINDS[kind]!, engine, dtype, seed: 4 });
      const [one, apart] = [true, false].map((fused) => run(layer, pageDtype, dtype, fused));
      expect(one!.fused).toBe(kind === "plain" ? 0 : STEPS.length);
      expect(one!.bits).toEqual(apart!.bits);
    });
  });
  test("16-bit weights serve float32 tokens", () => {
    scope(() => {
      const options = { ...KINDS["normalised by heads"]!, engine, dtype: "bfloat16", seed: 4 } as const;
      const layer = GroupedQueryAttention.create(options);
      const [one, apart] = [true, false].map((fused) => run(layer, "float32", "float32", fused));
      expect(one!.bits).toEqual(apart!.bits);
    });
  });
});
