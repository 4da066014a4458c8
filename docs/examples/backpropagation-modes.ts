// A sequence in two chunks: the second attends over the first's keys and values, and its gradients flow into them, or stop there.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { randn, type Tensor } from "@heed/tensor";

using layer = GroupedQueryAttention.create({ hiddenSize: 32, numHeads: 4, numKvHeads: 2, rope: {}, seed: 1 });
using x = randn([1, 12, 32], { seed: 2 });
using dOutput = randn([1, 12, 32], { seed: 3 });
using whole = layer.vjp(x);
/** The gradient of one weight. */
const read = (g: { readonly parameters: ReadonlyMap<string, Tensor> }) =>
  (g.parameters.get("k_proj.weight") as Tensor<"float32">).read();
const expected = await read(whole.backward(dOutput));

for (const backpropagation of ["full", "oneStep"] as const) {
  using first = layer.vjp(x.slice(1, 0, 7));
  using second = layer.vjp(x.slice(1, 7, 12), { past: first.present, backpropagation });
  const late = second.backward(dOutput.slice(1, 7, 12));
  const early = first.backward(dOutput.slice(1, 0, 7), late.past); // undefined after one step
  const [a, b] = [await read(early), await read(late)];
  const equal = a.every((d, i) => Math.abs(d + b[i]! - expected[i]!) < 1e-5);
  console.log(
    backpropagation === "full"
      ? `through both chunks, equal to one pass ${equal}`
      : `through the last chunk alone, equal to one pass ${equal}`,
  );
}
