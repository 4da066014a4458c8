// One prompt, three continuations: forks share the prompt's pages, and each copies the rows of the last one when it first adds to it.
// The local layers let go of pages behind their window; a draft of four tokens is taken back.
import "./engine.ts";
import { GlobalAttention, LocalAttention } from "@heed/attention";
import { KvCache, type Sequence } from "@heed/kvcache";
import { randn, scope, type Tensor } from "@heed/tensor";

const heads = { hiddenSize: 64, numHeads: 4, numKvHeads: 2, rope: { base: 10000 } };
const layers = [
  LocalAttention.create({ ...heads, windowSize: 16, layerIndex: 0 }),
  GlobalAttention.create({ ...heads, layerIndex: 1 }),
];
const rows = { numKvHeads: 2, headDim: 16, pageSize: 8, maxPages: 32 };
using cache = new KvCache({
  groups: [
    { ...rows, layers: [0], window: 16 },
    { ...rows, layers: [1] },
  ],
  draftMargin: 4,
});
/** Runs the layers over one new token of each sequence, or `tokens` of the only one. */
function advance(sequences: readonly Sequence[], tokens: number, seed: number): void {
  using step = cache.reserve(sequences.map((sequence) => ({ sequence, tokens })));
  scope(() => {
    const x: Tensor<"float32"> = randn([sequences.length * tokens, 64], { seed });
    layers.reduce((h, layer) => layer.forward(h, { cache: step }), x);
  });
  step.commit();
}
const pages = (): string =>
  cache
    .stats()
    .groups.map((g) => g.usedPages)
    .join(" local, ") + " global";

const prompt = cache.open();
advance([prompt], 60, 1); // 8 pages, the last one half full
console.log(`prompt: ${pages()}`);
const beams = [prompt, ...prompt.fork(2)];
console.log(`forked: ${pages()}`); // nothing was copied
advance(beams, 1, 2);
console.log(`after a token each: ${pages()}`); // 7 shared pages, and a last one each
for (let t = 0; t < 40; t++) advance(beams, 1, 3 + t);
console.log(`after 40 more: ${pages()}`);

advance([prompt], 4, 50);
prompt.truncate(prompt.length - 4); // a draft that was refused
console.log(`lengths ${beams.map((beam) => beam.length).join(", ")}`);
beams.slice(1).forEach((beam) => beam.release());
console.log(`two beams dropped: ${pages()}`);
cache.check();
