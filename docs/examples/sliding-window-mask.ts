// The same window as a mask and as an option.
import "@heed/engine-cpu";
import { causalSlidingWindowMask } from "@heed/attention";
import { attention, randn, toFloat64 } from "@heed/tensor";

using mask = causalSlidingWindowMask(6, 3); // bool [1, 1, 6, 6]: true may attend
const rows = toFloat64(mask);
for (let i = 0; i < 6; i++)
  console.log(Array.from(rows.slice(6 * i, 6 * i + 6), (b) => (b === 1 ? "x" : ".")).join(" "));

const [q, k, v] = [1, 2, 3].map((seed) => randn([1, 6, 2, 8], { seed })) as [never, never, never];
using byMask = attention(q, k, v, { attnMask: mask });
using byOption = attention(q, k, v, { isCausal: true, window: { left: 2 } }); // skips what is not seen
const b = toFloat64(byOption);
console.log(`equal ${toFloat64(byMask).every((y, i) => Math.abs(y - b[i]!) < 1e-6)}`);
