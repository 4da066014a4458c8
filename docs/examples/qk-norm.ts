// Query-key normalisation bounds the scores: by heads, and over whole tensors.
import "./engine.ts";
import { qkNorm, qkNormVjp } from "@heed/attention";
import { randn, tensor } from "@heed/tensor";

using row = tensor([1, 2, 3]);
using whole = qkNorm(row, row, { over: "tensor", eps: 1e-5 }).q;
console.log(`over the tensor ${[...(await whole.read())].map((y) => y.toFixed(6)).join(", ")}`);

using q = randn([2, 5, 4, 16], { seed: 1 }); // [B, S, Hq, D]
using k = randn([2, 5, 2, 16], { seed: 2 });
using pass = qkNormVjp(q, k); // over the last axis: every head by itself
using squares = pass.backward(pass.q, pass.k).q;
console.log(`q ${pass.q}, k ${pass.k}`);
// A row is 4 long for any x, so the gradient of |y|^2 / 2 along it is 0 but for eps.
console.log(`bounded ${(await squares.read()).every((d) => Math.abs(d) < 1e-5)}`);
