// Beam search: of all continuations of the beams the likeliest few go on. A beam with several children is forked, one without is released:
// pages are shared as far as the beams agree, and nothing but the used rows of last pages is ever copied.
// Run: bun docs/examples/beam-search.ts
import type { KvCache, Sequence } from "@heed/kvcache";
import { TinyDecoder } from "./tiny-decoder.ts";

/** A continuation, and the sum of its tokens' log probabilities. */
export interface Hypothesis {
  readonly ids: readonly number[];
  readonly score: number;
}
interface Beam extends Hypothesis {
  readonly sequence: Sequence;
}
/** log softmax(logits). */
export function logProbabilities(logits: Float32Array): Float64Array {
  const most = Math.max(...logits);
  const sum = logits.reduce((total, x) => total + Math.exp(x - most), 0);
  return Float64Array.from(logits, (x) => x - most - Math.log(sum));
}
/** The `width` likeliest of all beams' continuations by a token, the best first; each with the place of its beam. */
export function bestChildren(
  beams: readonly Hypothesis[],
  logits: readonly Float32Array[],
  width: number,
): (Hypothesis & { readonly parent: number })[] {
  return beams
    .flatMap(({ ids, score }, parent) =>
      Array.from(logProbabilities(logits[parent]!), (logP, id) => {
        return { parent, ids: [...ids, id], score: score + logP };
      }),
    )
    .toSorted((a, b) => b.score - a.score)
    .slice(0, width);
}
/** The `width` best hypotheses of `tokens` tokens; `onStep` may look at the cache after each. */
export async function beamSearch(
  model: TinyDecoder,
  cache: KvCache,
  prompt: readonly number[],
  {
    tokens,
    width,
    onStep,
  }: { readonly tokens: number; readonly width: number; readonly onStep?: () => void },
): Promise<Hypothesis[]> {
  let beams: Beam[] = [{ sequence: cache.open(), ids: [], score: 0 }];
  for (let t = 0; t < tokens; t++) {
    const fresh = beams.map(({ sequence, ids }) => ({ sequence, ids: t === 0 ? prompt : ids.slice(-1) }));
    const logits = await model.extend(cache, fresh);
    const children = bestChildren(
      beams,
      logits.map((rows) => rows.at(-1)!),
      width,
    );
    const next: Beam[] = [];
    beams.forEach(({ sequence }, parent) => {
      const own = children.filter((child) => child.parent === parent);
      if (own.length === 0) return sequence.release();
      const sequences = own.length === 1 ? [sequence] : [sequence, ...sequence.fork(own.length - 1)];
      next.push(...own.map(({ ids, score }, i) => ({ ids, score, sequence: sequences[i]! })));
    });
    beams = next.toSorted((a, b) => b.score - a.score);
    onStep?.();
  }
  for (const { sequence } of beams) sequence.release();
  return beams.map(({ ids, score }) => ({ ids, score }));
}

if (import.meta.main) {
  const model = TinyDecoder.create(9);
  const prompt = Array.from({ length: 30 }, (_, i) => (7 * i) % 64);
  const [tokens, width] = [16, 4];
  using cache = model.cache(32);
  let most = 0;
  const onStep = (): void => void (most = Math.max(most, cache.stats().usedPages));
  const best = await beamSearch(model, cache, prompt, { tokens, width, onStep });
  for (const { ids, score } of best) console.log(`${score.toFixed(3)}: ${ids.join(" ")}`);
  const alone = width * Math.ceil((prompt.length + tokens) / 4);
  console.log(`at most ${most} pages for ${width} beams; ${alone} if each had its own`);
  const [greedy] = await beamSearch(model, cache, prompt, { tokens, width: 1 });
  console.log(`the likeliest token at each step gives ${greedy!.score.toFixed(3)}`);
  console.log(`afterwards ${cache.stats().usedPages} pages are in use`);
}
