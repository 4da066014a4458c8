// DeepSeek's attention: expanded without a cache, absorbed with one, where a token takes kvLoraRank + qkRopeHeadDim numbers.
import "./engine.ts";
import { MultiHeadLatentAttention } from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import { randn, type Tensor } from "@heed/tensor";

using layer = MultiHeadLatentAttention.create({
  hiddenSize: 64,
  numHeads: 4,
  qLoraRank: 24, // null: queries in one map, as DeepSeek-V2-Lite
  kvLoraRank: 32,
  qkNopeHeadDim: 16,
  qkRopeHeadDim: 8,
  vHeadDim: 16,
  rope: { base: 10000 },
  seed: 1,
});
for (const [name, weight] of layer.parameters) console.log(`${name} ${weight}`);

using x = randn([1, 10, 64], { seed: 2 });
using full = layer.forward(x);
const last = await full.slice(1, 9, 10).read();

using cache = new KvCache({ layers: 1, ...layer.cacheLayout, pageSize: 16, maxPages: 2 });
const sequence = cache.open();
let output: Tensor<"float32"> | undefined;
for (const [from, to] of [
  [0, 7],
  [7, 8],
  [8, 9],
  [9, 10],
] as const) {
  using step = cache.reserve([{ sequence, tokens: to - from }]);
  output?.[Symbol.dispose]();
  output = layer.forward(x.slice(1, from, to), { cache: step });
  step.commit();
}
const largest = Math.max(...last.map((y) => Math.abs(y)));
const error = (await output!.read()).reduce((m, y, i) => Math.max(m, Math.abs(y - last[i]!)), 0);
console.log(`absorbed ${output}, equal to expanded ${error < 1e-5 * largest}`);
console.log(cache.stats());
