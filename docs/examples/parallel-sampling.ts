// Several answers to one prompt: it is computed once, and each answer is a fork that draws tokens of its own. They share the prompt's full
// pages for good; of its last page, which has room left, each takes a copy when it first adds to it, and the last to do so keeps it.
// Run: bun docs/examples/parallel-sampling.ts
import type { KvCache } from "@heed/kvcache";
import { TinyDecoder } from "./tiny-decoder.ts";

/** Numbers in [0, 1) that depend on the seed alone: mulberry32 (Ettinger 2017). */
export function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
/** A token drawn from softmax(logits / temperature) by a number in [0, 1). */
export function draw(logits: Float32Array, temperature: number, uniform: number): number {
  const most = Math.max(...logits);
  const weights = Float64Array.from(logits, (x) => Math.exp((x - most) / temperature));
  let left = uniform * weights.reduce((a, b) => a + b, 0);
  const drawn = weights.findIndex((w) => (left -= w) < 0);
  return drawn < 0 ? logits.indexOf(most) : drawn; // rounding may leave a rest
}
export interface SamplingOptions {
  readonly tokens: number;
  readonly temperature: number;
  /** One for each answer. */
  readonly seeds: readonly number[];
  /** May look at the cache: after the prompt, after the forks, after each token. */
  readonly onStep?: (what: string) => void;
}
/** An answer for each seed; the same seed gives the same answer, whatever the others are. */
export async function sample(
  model: TinyDecoder,
  cache: KvCache,
  prompt: readonly number[],
  { tokens, temperature, seeds, onStep }: SamplingOptions,
): Promise<number[][]> {
  const first = cache.open();
  const [rows] = await model.extend(cache, [{ sequence: first, ids: prompt }]);
  onStep?.("the prompt");
  const answers = first
    .fork(seeds.length)
    .map((sequence, i) => ({ sequence, ids: [] as number[], next: generator(seeds[i]!) }));
  first.release(); // the forks keep its pages
  onStep?.(`${seeds.length} forks`);
  let logits = answers.map(() => rows!.at(-1)!);
  for (let t = 0; t < tokens; t++) {
    if (t > 0) {
      const fresh = answers.map(({ sequence, ids }) => ({ sequence, ids: ids.slice(-1) }));
      logits = (await model.extend(cache, fresh)).map((step) => step[0]!);
      onStep?.(`${t} more each`);
    }
    answers.forEach(({ ids, next }, i) => ids.push(draw(logits[i]!, temperature, next())));
  }
  for (const { sequence } of answers) sequence.release();
  return answers.map(({ ids }) => ids);
}

if (import.meta.main) {
  const model = TinyDecoder.create(9);
  const prompt = Array.from({ length: 26 }, (_, i) => (5 * i) % 64); // 6 full pages of 4, and half a one
  using cache = model.cache(32);
  const onStep = (what: string): void => {
    const { usedPages, tokens } = cache.stats();
    console.log(`${what}: ${tokens} tokens on ${usedPages} pages`);
  };
  const options = { tokens: 10, temperature: 0.8, seeds: [1, 2, 3, 4] };
  const answers = await sample(model, cache, prompt, { ...options, onStep });
  for (const [i, ids] of answers.entries()) console.log(`seed ${options.seeds[i]}: ${ids.join(" ")}`);
  const [again] = await sample(model, cache, prompt, { ...options, seeds: [3] });
  console.log(`seed 3 alone gives the same: ${again!.every((id, i) => id === answers[2]![i])}`);
}
