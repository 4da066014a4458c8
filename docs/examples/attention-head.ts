// One head, causal and bidirectional over the same parameters: only the causal one's first output ignores the last token.
import "./engine.ts";
import { AttentionHead } from "@heed/attention";
import { randn } from "@heed/tensor";

using causal = AttentionHead.create({ hiddenSize: 32, headDim: 16, bias: true, seed: 1 });
using both = new AttentionHead({ ...causal.attributes(), isCausal: false }, causal.parameters);
using x = randn([1, 6, 32], { seed: 2 });

for (const [name, head] of [
  ["causal", causal],
  ["bidirectional", both],
] as const) {
  using whole = head.forward(x); // [B, S, headDim]
  using shorter = head.forward(x.slice(1, 0, 5));
  const [a, b] = [await whole.slice(1, 0, 1).read(), await shorter.slice(1, 0, 1).read()];
  console.log(`${name} ${whole}: first token sees the last ${a.some((y, i) => Math.abs(y - b[i]!) > 1e-6)}`);
}
using pass = causal.vjp(x);
const gradients = pass.backward(pass.output);
console.log(`dx ${gradients.input}; ${[...gradients.parameters.keys()].join(", ")}`);
