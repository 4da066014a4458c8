// A stack that alternates as Gemma's does: local layers with a window and a rotation of their own, global ones over everything,
// all through one cache, in which the local layers keep the pages of their window alone. A prompt of 12 tokens, then 4 one by one, equals
// one pass over the 16.
import "./engine.ts";
import { GlobalAttention, LocalAttention } from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import { type BlockTableReader, randn, scope, type Tensor } from "@heed/tensor";

const heads = { hiddenSize: 64, numHeads: 4, numKvHeads: 2 };
const layers = [0, 1, 2].map((layerIndex) =>
  layerIndex % 3 === 2
    ? GlobalAttention.create({ ...heads, rope: { base: 1000000 }, layerIndex, seed: layerIndex })
    : LocalAttention.create({
        ...heads,
        windowSize: 4,
        rope: { base: 10000 },
        layerIndex,
        seed: layerIndex,
      }),
);
/** The layers one after the other, without the rest of a decoder. */
function stack(x: Tensor<"float32">, cache?: BlockTableReader): Tensor<"float32"> {
  return scope(() => layers.reduce((h, layer) => layer.forward(h, cache ? { cache } : {}), x));
}
using x = randn([1, 16, 64], { seed: 9 });
using full = stack(x);
const last = await full.slice(1, 15, 16).read();

const rows = { numKvHeads: 2, headDim: 16, pageSize: 4, maxPages: 4 };
using cache = new KvCache({
  groups: [
    { ...rows, layers: [0, 1], window: 4 },
    { ...rows, layers: [2] },
  ],
});
const sequence = cache.open();
let output: Tensor<"float32"> | undefined;
for (const [from, to] of [[0, 12], ...[12, 13, 14, 15].map((i) => [i, i + 1] as const)] as const) {
  using step = cache.reserve([{ sequence, tokens: to - from }]);
  output?.[Symbol.dispose]();
  output = stack(x.slice(1, from, to), step);
  step.commit();
}
const largest = Math.max(...last.map((y) => Math.abs(y)));
const error = (await output!.slice(1, -1).read()).reduce((m, y, i) => Math.max(m, Math.abs(y - last[i]!)), 0);
console.log(`${layers.map((layer) => layer.attributes().operation).join(", ")}`);
console.log(`through the cache ${output}, equal to one pass ${error < 1e-5 * largest}`);
