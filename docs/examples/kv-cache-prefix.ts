// Prefixes: two prompts that begin alike share pages, and the second computes only what is new.
// Run: bun docs/examples/kv-cache-prefix.ts
import "./engine.ts";
import { KvCache, type Sequence } from "@heed/kvcache";
import { randn, scope } from "@heed/tensor";

using cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 8, pageSize: 4, maxPages: 8, prefixes: true });

/** What a model would do: keys and values of the new tokens, layer by layer. */
function compute(sequence: Sequence, ids: readonly number[]): void {
  using step = cache.reserve([{ sequence, tokens: ids.length }]);
  scope(() => step.write(0, randn([ids.length, 2, 8]), randn([ids.length, 2, 8])));
  step.commit(ids);
}
function answer(prompt: readonly number[]): Sequence {
  using match = cache.match(prompt);
  console.log(`${match.length} of ${prompt.length} tokens found`);
  const sequence = cache.open({ match });
  compute(sequence, prompt.slice(match.length));
  return sequence;
}
const system = [11, 12, 13, 14, 15, 16, 17, 18];
const first = answer([...system, 1, 2, 3]);
const second = answer([...system, 7, 8]);
console.log("pages", first.pages.join(" "), "and", second.pages.join(" "));

first.release();
second.release();
const { cachedPages, freePages } = cache.stats();
console.log(`${cachedPages} pages still hold the system prompt, ${freePages} are free`);
answer([...system, 4]).release();
