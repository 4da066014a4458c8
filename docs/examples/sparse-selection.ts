// Attention over keys that every query selects: single tokens by their own score, or blocks by that of their mean key. Selections are
// boolean masks made on the host, so gradients are exact through the selected weights. All scores are computed: no work is saved.
import "./engine.ts";
import { add, attention, attentionScores, attentionVjp, mul, randn, tensor, type Tensor } from "@heed/tensor";

const [B, H, S, Sk, D] = [1, 4, 3, 24, 16];
const layout = "bhsd";
using q = randn([B, H, S, D], { seed: 1 });
using k = randn([B, 2, Sk, D], { seed: 2 });
using v = randn([B, 2, Sk, D], { seed: 3 });

/** bool [B, H, S, Sk]: for each query the `count` blocks of `size` keys with the highest mean score; q . mean(k) = mean(q . k). */
async function select(size: number, count: number): Promise<Tensor<"bool">> {
  using scores = attentionScores(q, k, v, { layout, stage: "raw" }).scores; // [B, H, S, Sk]
  const values = await (scores as Tensor<"float32">).read();
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
using tokens = await select(1, 6);
using blocks = await select(4, 2);
using pass = attentionVjp(q, k, v, { layout, attnMask: tokens });
using byBlocks = attention(q, k, v, { layout, attnMask: blocks });
using byWindow = attention(q, k, v, { layout, isCausal: true, window: { left: 7 } }); // skips what is not seen
const gates = [0.5, 0.3, 0.2];
const paths = [pass.output, byBlocks, byWindow].map((out, i) => mul(out, gates[i]!));
console.log(`three paths added up ${paths.reduce((sum, path) => add(sum, path))}`);

const { k: dk } = pass.backward(pass.output);
console.log(`gradient of the keys ${dk}, not zero ${(await dk.read()).some((d) => d !== 0)}`);
using all = attention(q, k, v, { layout });
using everything = attention(q, k, v, { layout, attnMask: await select(1, Sk) });
const expected = await all.read();
console.log(
  `all selected equals attention ${(await everything.read()).every((y, i) => Math.abs(y - expected[i]!) < 1e-6)}`,
);
