// A rotation depends on positions only: two halves of a sequence at their own positions equal one pass, and backward undoes it.
import "./engine.ts";
import { RotaryEmbedding } from "@heed/attention";
import { randn } from "@heed/tensor";

using rope = new RotaryEmbedding({ rotaryDim: 32, base: 10000, pairing: "half" });
using x = randn([1, 8, 2, 64], { seed: 1 }); // [B, S, H, D]: the last 32 of 64 components pass through

using whole = rope.apply(x);
using second = rope.apply(x.slice(1, 4, 8), 4); // tokens 4 .. 7
const [a, b] = [await whole.slice(1, 4, 8).read(), await second.read()];
console.log(`${whole}, second half equal ${a.every((y, i) => y === b[i])}`);

using back = rope.applyBackward(whole);
const original = await x.read();
console.log(`undone ${(await back.read()).every((y, i) => Math.abs(y - original[i]!) < 1e-6)}`);
