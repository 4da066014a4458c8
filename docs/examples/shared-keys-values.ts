// A layer that attends over another layer's keys and values: it has queries alone, and its gradients reach the donor through them.
import "./engine.ts";
import { GroupedQueryAttention, Linear, RotaryEmbedding } from "@heed/attention";
import { attentionVjp, randn, type Tensor } from "@heed/tensor";

const [B, S, hidden, Hq, Hkv, D] = [1, 6, 32, 4, 2, 8];
using rope = new RotaryEmbedding({ rotaryDim: D });
using donor = GroupedQueryAttention.create({
  hiddenSize: hidden,
  numHeads: Hq,
  numKvHeads: Hkv,
  rope,
  seed: 1,
});
using queries = Linear.create({ inFeatures: hidden, outFeatures: Hq * D, seed: 2 });
using out = Linear.create({ inFeatures: Hq * D, outFeatures: hidden, seed: 3 });
using x = randn([B, S, hidden], { seed: 4 });

using first = donor.vjp(x);
const { k, v } = first.present; // [B, S, Hkv, D], normalised and rotated
using projected = queries.vjp(first.output);
using q = rope.apply(projected.output.reshape([B, S, Hq, D]));
using attended = attentionVjp(q, k, v, { isCausal: true });
using last = out.vjp(attended.output.reshape([B, S, Hq * D]));
console.log(`output ${last.output}, over keys ${k}`);

const dAttended = last.backward(last.output).input.reshape([B, S, Hq, D]);
const inner = attended.backward(dAttended);
const dq = rope.applyBackward(inner.q as Tensor<"float32">).reshape([B, S, Hq * D]);
const dFirst = projected.backward(dq).input;
const gradients = first.backward(dFirst, {
  k: inner.k as Tensor<"float32">,
  v: inner.v as Tensor<"float32">,
});
console.log(`dx ${gradients.input}, of the donor's ${[...gradients.parameters.keys()].join(", ")}`);
