// A decode far beyond the window (Xiao et al. 2023, arXiv:2309.17453): each token sees the first 4 tokens and the last 16. The cache keeps
// the pages of those and no more, and the outputs are those of full attention under a mask that leaves the same tokens visible.
import "./engine.ts";
import { GroupedQueryAttention, LocalAttention } from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import { randn, scope, tensor } from "@heed/tensor";

const [length, windowSize, sinkTokens] = [200, 16, 4];
const heads = { hiddenSize: 32, numHeads: 4, numKvHeads: 2, headDim: 8, rope: { base: 10000 } };
const layer = LocalAttention.create({ ...heads, windowSize, sinkTokens, seed: 1 });
using cache = new KvCache({
  layers: 1,
  numKvHeads: 2,
  headDim: 8,
  window: windowSize,
  sinks: sinkTokens,
  pageSize: 8,
  maxPages: 5,
});
const x = randn([length, 32], { seed: 2 });
const sequence = cache.open();
const streamed: number[] = [];
let mostPages = 0;
for (let t = 0; t < length; t++) {
  using step = cache.reserve([{ sequence, tokens: 1 }]);
  using output = scope(() => layer.forward(x.slice(0, t, t + 1), { cache: step }));
  streamed.push(...(await output.read()));
  step.commit();
  mostPages = Math.max(mostPages, cache.stats().usedPages);
}
const visible = Uint8Array.from({ length: length * length }, (_, e) => {
  const [i, j] = [Math.floor(e / length), e % length];
  return j <= i && (j < sinkTokens || j > i - windowSize) ? 1 : 0;
});
const full = new GroupedQueryAttention({ ...heads, isCausal: false }, layer.parameters);
const attnMask = tensor(visible, [length, length], { dtype: "bool" });
const should = await full.forward(x.unsqueeze(0), { attnMask }).read();
const off = Math.max(...should.map((value, e) => Math.abs(value - streamed[e]!)));
console.log(`${length} tokens on at most ${mostPages} pages; ${length / 8} without a window`);
console.log(`equal to full attention under the mask: ${off < 1e-5}`);
