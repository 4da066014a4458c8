// A layer from plain data: the name of its operation, its attributes and a checkpoint's tensors.
import "./engine.ts";
import { buildLayer, GroupedQueryAttention } from "@heed/attention";
import { HeedError, randn } from "@heed/tensor";

using layer = GroupedQueryAttention.create({
  hiddenSize: 32,
  numHeads: 4,
  numKvHeads: 2,
  rope: { base: 10000 },
});
const prefix = "model.layers.0.self_attn";
const checkpoint = new Map([...layer.parameters].map(([name, t]) => [`${prefix}.${name}`, t]));
const attributes = JSON.parse(JSON.stringify(layer.attributes()));

using built = buildLayer("GroupedQueryAttention", attributes, checkpoint, { prefix });
using x = randn([1, 4, 32], { seed: 1 });
const [a, b] = [await layer.forward(x).read(), await built.forward(x).read()];
console.log(`same bits ${a.every((y, i) => y === b[i])}`);

checkpoint.delete(`${prefix}.k_proj.weight`);
try {
  buildLayer("GroupedQueryAttention", attributes, checkpoint, { prefix });
} catch (error) {
  if (error instanceof HeedError) console.log(`${error.code}: ${error.message}`);
}
