// Attention over keys that every query selects: single tokens by their own score, or blocks by that of their mean key. Selections are
// boolean masks made on the host, so gradients are exact through the selected weights. All scores are computed: no work is saved.
import "@heed/engine-cpu";
import {
  add,
  attention,
  attentionScores,
  attentionVjp,
  mul,
  randn,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";

const [B, H, S, Sk, D] = [1, 4, 3, 24, 16];
const layout = "bhsd";
using q = randn([B, H, S, D], { seed: 1 });
using k = randn([B, 2, Sk, D], { seed: 2 });
using v = randn([B, 2, Sk, D], { seed: 3 });

/** bool [B, H, S, Sk]: for each query the `count` blocks of `size` keys with the highest mean score; q . mean(k) = mean(q . k). */
function select(size: number, count: number): Tensor<"bool"> {
  using scores = attentionScores(q, k, v, { layout, stage: "raw" }).scores; // [B, H, S, Sk]
  const values = toFloat64(scores);
  const chosen = new Uint8Array(values.length);
  for (let row = 0; row < values.length; row += Sk) {
    const blocks = Array.from({ length: Math.ceil(Sk / size) }, (_, b) => {
      const keys = values.subarray(row + b * size, row + Math.min((b + 1) * size, Sk));
      return {
        at: row + b * size,
        keys: keys.length,
        score: keys.reduce((sum, s) => sum + s, 0) / keys.length,
      };
    });
    blocks.sort((a, b) => b.score - a.score);
    for (const { at, keys } of blocks.slice(0, count)) chosen.fill(1, at, at + keys);
  }
  return tensor(chosen, [B, H, S, Sk], { dtype: "bool" });
}
using tokens = select(1, 6);
using blocks = select(4, 2);
using pass = attentionVjp(q, k, v, { layout, attnMask: tokens });
using byBlocks = attention(q, k, v, { layout, attnMask: blocks });
using byWindow = attention(q, k, v, { layout, isCausal: true, window: { left: 7 } }); // skips what is not seen
const gates = [0.5, 0.3, 0.2];
const paths = [pass.output, byBlocks, byWindow].map((out, i) => mul(out, gates[i]!));
console.log(`three paths added up ${paths.reduce((sum, path) => add(sum, path))}`);

const { k: dk } = pass.backward(pass.output);
console.log(`gradient of the keys ${dk}, not zero ${toFloat64(dk).some((d) => d !== 0)}`);
using all = attention(q, k, v, { layout });
using everything = attention(q, k, v, { layout, attnMask: select(1, Sk) });
const expected = toFloat64(all);
console.log(
  `all selected equals attention ${toFloat64(everything).every((y, i) => Math.abs(y - expected[i]!) < 1e-6)}`,
);
