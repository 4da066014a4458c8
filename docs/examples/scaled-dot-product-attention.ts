// One module for training and decoding: the second half of a sequence against all of it equals the second half of one full pass.
import "./engine.ts";
import { ScaledDotProductAttention } from "@heed/attention";
import { randn } from "@heed/tensor";

const [B, S, Hq, Hkv, D] = [2, 8, 4, 2, 16];
using q = randn([B, S, Hq, D], { seed: 1 });
using k = randn([B, S, Hkv, D], { seed: 2 });
using v = randn([B, S, Hkv, D], { seed: 3 });
const layer = new ScaledDotProductAttention({ isCausal: true, window: { left: 4 } });

using full = layer.forward(q, k, v); // [B, S, Hq, D]
using tail = layer.forward(q.slice(1, S / 2, S), k, v); // its last query stands at the last key
const [a, b] = [await full.slice(1, S / 2, S).read(), await tail.read()];
console.log(`tail ${tail}, equal ${a.every((x, i) => Math.abs(x - b[i]!) < 1e-6)}`);

using pass = layer.vjp(q, k, v);
const gradients = pass.backward(pass.output); // of sum(output^2) / 2
console.log(`dq ${gradients.q}, dk ${gradients.k}, dv ${gradients.v}`);
console.log(layer.attributes());
