// The attention of a Llama-like model: grouped heads, rotation, training, and the same function again from its attributes.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { randn } from "@heed/tensor";

using layer = GroupedQueryAttention.create({
  hiddenSize: 64,
  numHeads: 8,
  numKvHeads: 2, // 8 would be multi-head, 1 multi-query attention
  headDim: 16, // independent of hiddenSize / numHeads
  bias: { q: true, k: true, v: true, o: false }, // as Qwen 2
  rope: { base: 500000, scaling: { type: "linear", factor: 2 } },
  qkNorm: { eps: 1e-6 }, // as Qwen 3
  window: { left: 15 }, // sliding_window 16
});
for (const [name, weight] of layer.parameters) console.log(`${name} ${weight}`);

using x = randn([2, 24, 64], { seed: 1 });
using pass = layer.vjp(x);
const gradients = pass.backward(pass.output);
console.log(`output ${pass.output}, dx ${gradients.input}, ${gradients.parameters.size} parameter gradients`);

const attributes = JSON.parse(JSON.stringify(layer.attributes()));
using again = GroupedQueryAttention.fromParameters(attributes, layer.parameters);
using output = again.forward(x);
const expected = await pass.output.read();
console.log(`built again: same bits ${(await output.read()).every((y, i) => y === expected[i])}`);
