// The two layers that the others are made of, and one chain rule by hand.
import "./engine.ts";
import { Linear, RMSNorm } from "@heed/attention";
import { randn } from "@heed/tensor";

using norm = RMSNorm.create({ shape: [32], eps: 1e-6, unitOffset: true }); // as Gemma: times 1 + weight
using linear = Linear.create({ inFeatures: 32, outFeatures: 48, bias: true, seed: 1 });
using x = randn([2, 5, 32], { seed: 2 });

using first = norm.vjp(x);
using second = linear.vjp(first.output);
const outer = second.backward(second.output);
const inner = first.backward(outer.input);
console.log(`output ${second.output}, dx ${inner.input}`);
for (const [name, gradient] of inner.parameters) console.log(`norm ${name} ${gradient}`);
for (const [name, gradient] of outer.parameters) console.log(`linear ${name} ${gradient}`);
