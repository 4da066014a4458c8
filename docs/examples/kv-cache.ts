// Two sequences of different lengths in one paged cache: prefilled together, then decoded together.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import { randn } from "@heed/tensor";

const hiddenSize = 128;
using layer = GroupedQueryAttention.create({
  hiddenSize,
  numHeads: 4,
  numKvHeads: 2,
  rope: { base: 10000 },
  window: { left: 255 },
});
using cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 32, pageSize: 16, maxPages: 8 });
const [a, b] = [cache.open(), cache.open()];

{
  using step = cache.reserve([
    { sequence: a, tokens: 20 },
    { sequence: b, tokens: 7 },
  ]); // all or nothing
  using out = layer.forward(randn([27, hiddenSize], { seed: 1 }), { cache: step }); // ragged: [T, hidden]
  step.commit(); // lengths move here, or not at all
  console.log(`prefilled ${out}; lengths ${a.length}, ${b.length}`);
}
for (let i = 0; i < 3; i++) {
  using step = cache.reserve([
    { sequence: a, tokens: 1 },
    { sequence: b, tokens: 1 },
  ]);
  using out = layer.forward(randn([2, 1, hiddenSize], { seed: 2 + i }), { cache: step });
  step.commit();
  console.log(`decoded ${out}; lengths ${a.length}, ${b.length}`);
}
a.truncate(10);
cache.check(); // walks every invariant; throws if one fails
console.log(cache.stats());
