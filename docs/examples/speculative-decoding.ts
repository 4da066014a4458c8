// Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192), greedy: a cheap model drafts a few tokens one by one, the model proper
// looks at all of them in one step and keeps those that it would have chosen itself. Both caches take back the rest by `truncate`.
// Run: bun docs/examples/speculative-decoding.ts
import { likeliest, TinyDecoder } from "./tiny-decoder.ts";

/** What one step of the target made of a draft. */
export interface Round {
  readonly drafted: readonly number[];
  readonly kept: number;
  /** The target's own token behind those that were kept. */
  readonly next: number;
}
/** The likeliest continuation, a token a step. */
export async function decode(
  model: TinyDecoder,
  prompt: readonly number[],
  tokens: number,
): Promise<number[]> {
  using cache = model.cache(Math.ceil((prompt.length + tokens) / 4));
  const sequence = cache.open();
  const ids = [...prompt];
  while (ids.length < prompt.length + tokens) {
    const [logits] = await model.extend(cache, [{ sequence, ids: ids.slice(sequence.length) }]);
    ids.push(likeliest(logits!.at(-1)!));
  }
  return ids.slice(prompt.length);
}
/** The same continuation, in a round for each step of the target. `width` tokens are drafted at a time. */
export async function speculate(
  target: TinyDecoder,
  draft: TinyDecoder,
  prompt: readonly number[],
  { tokens, width }: { readonly tokens: number; readonly width: number },
): Promise<{ made: number[]; rounds: Round[] }> {
  const pages = Math.ceil((prompt.length + tokens) / 4);
  using targetCache = target.cache(pages);
  using draftCache = draft.cache(pages);
  const sequence = targetCache.open();
  const shadow = draftCache.open();
  const ids = [...prompt]; // all that is known; the last one has not been fed to anybody
  const rounds: Round[] = [];
  for (let left = tokens; left > 0; left = prompt.length + tokens - ids.length) {
    const drafted: number[] = [];
    while (drafted.length < Math.min(width, left - 1)) {
      const fresh = [...ids, ...drafted].slice(shadow.length);
      const [logits] = await draft.extend(draftCache, [{ sequence: shadow, ids: fresh }]);
      drafted.push(likeliest(logits!.at(-1)!));
    }
    const fresh = [...ids.slice(sequence.length), ...drafted];
    const [logits] = await target.extend(targetCache, [{ sequence, ids: fresh }]);
    // What the target says behind the last known token and behind each drafted one.
    const chosen = logits!.slice(-drafted.length - 1).map(likeliest);
    let kept = 0;
    while (kept < drafted.length && drafted[kept] === chosen[kept]) kept++;
    rounds.push({ drafted, kept, next: chosen[kept]! });
    ids.push(...chosen.slice(0, kept + 1));
    sequence.truncate(ids.length - 1); // refused tokens leave no trace
    shadow.truncate(Math.min(shadow.length, ids.length - 1));
  }
  for (const cache of [targetCache, draftCache]) cache.check();
  return { made: ids.slice(prompt.length), rounds };
}

if (import.meta.main) {
  const target = TinyDecoder.create(1);
  const [prompt, tokens] = [[3, 14, 15, 9, 26], 32];
  const { made, rounds } = await speculate(target, target.firstLayer(), prompt, { tokens, width: 4 });
  for (const { drafted, kept, next } of rounds) {
    const marked = drafted.map((id, i) => (i < kept ? `${id}` : `(${id})`)).join(" ");
    console.log(`drafted ${marked.padEnd(20)} kept ${kept}, then ${next}`);
  }
  console.log(`${tokens} tokens in ${rounds.length} steps of the target`);
  const plain = await decode(target, prompt, tokens);
  console.log(`equal to a token a step: ${plain.every((id, i) => id === made[i])}`);
}
