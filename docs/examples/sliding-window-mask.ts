// The same window as a mask and as an option.
import "./engine.ts";
import { causalSlidingWindowMask } from "@heed/attention";
import { attention, randn } from "@heed/tensor";

using mask = causalSlidingWindowMask(6, 3); // bool [1, 1, 6, 6]: true may attend
const rows = await mask.read();
for (let i = 0; i < 6; i++)
  console.log(Array.from(rows.slice(6 * i, 6 * i + 6), (b) => (b === 1 ? "x" : ".")).join(" "));

const [q, k, v] = [1, 2, 3].map((seed) => randn([1, 6, 2, 8], { seed })) as [never, never, never];
using byMask = attention(q, k, v, { attnMask: mask });
using byOption = attention(q, k, v, { isCausal: true, window: { left: 2 } }); // skips what is not seen
const b = await byOption.read();
console.log(`equal ${(await byMask.read()).every((y, i) => Math.abs(y - b[i]!) < 1e-6)}`);
