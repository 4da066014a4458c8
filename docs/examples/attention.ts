// Attention and its gradients, with a window and a softcap; the same call in the composed form as a second opinion.
import "./engine.ts";
import { attention, attentionVjp, randn } from "@heed/tensor";

const [B, S, Hq, Hkv, D] = [2, 64, 8, 2, 32];
using q = randn([B, S, Hq, D], { seed: 1 });
using k = randn([B, S, Hkv, D], { seed: 2 });
using v = randn([B, S, Hkv, D], { seed: 3 });
const options = { isCausal: true, window: { left: 15 }, softcap: 20 };

using out = attention(q, k, v, options);
using composed = attention(q, k, v, { ...options, fused: "off" });
const [a, b] = [await out.read(), await composed.read()];
console.log(
  `${out}, largest difference from the composed form ${a.reduce((m, x, i) => Math.max(m, Math.abs(x - b[i]!)), 0)}`,
);

using pass = attentionVjp(q, k, v, options);
const gradients = pass.backward(pass.output); // of sum(output^2) / 2
console.log(`dq ${gradients.q}, dk ${gradients.k}, dv ${gradients.v}, lse ${pass.lse}`);
