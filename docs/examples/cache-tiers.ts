// More conversations than the cache has pages for. Whoever has waited longest moves out, to host memory or, where that is full, to a folder,
// and comes back to other pages for its next turn, with the same rows: nothing is computed twice.
// Run: bun docs/examples/cache-tiers.ts
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FolderTier, HostTier, type KvCache, type Sequence, type Tier } from "@heed/kvcache";
import { OutOfMemoryError } from "@heed/tensor";
import { likeliest, TinyDecoder } from "./tiny-decoder.ts";

/** Runs `act`, and as long as it is out of memory and `makeRoom` makes some, again. */
async function withRoom<T>(act: () => Promise<T>, makeRoom: () => Promise<boolean>): Promise<T> {
  for (;;) {
    try {
      return await act(); // out of pages, it has changed nothing
    } catch (error) {
      if (!(error instanceof OutOfMemoryError) || !(await makeRoom())) throw error;
    }
  }
}
interface Conversation {
  readonly sequence: Sequence;
  unread: number[]; // tokens that the model has not seen yet
}
/** Conversations that take turns in one cache. */
export class Conversations {
  readonly #model: TinyDecoder;
  readonly #cache: KvCache;
  readonly #tiers: readonly Tier[]; // the first that has room takes it
  readonly #waiting = new Map<number, Conversation>(); // the longest first
  constructor(model: TinyDecoder, cache: KvCache, tiers: readonly Tier[]) {
    this.#model = model;
    this.#cache = cache;
    this.#tiers = tiers;
  }
  /** One turn: the user's tokens, then as many of the model's own, which are returned. */
  async turn(name: number, said: readonly number[], tokens: number): Promise<number[]> {
    const speaking = this.#waiting.get(name) ?? { sequence: this.#cache.open(), unread: [] };
    const { sequence } = speaking;
    this.#waiting.delete(name); // whoever speaks is not moved out
    if (sequence.swapped) await this.#withRoom(() => this.#cache.swapIn(sequence));
    speaking.unread.push(...said);
    const answer: number[] = [];
    while (answer.length < tokens) {
      const fresh = [{ sequence, ids: speaking.unread }];
      const [logits] = await this.#withRoom(() => this.#model.extend(this.#cache, fresh));
      speaking.unread = [likeliest(logits!.at(-1)!)];
      answer.push(...speaking.unread);
    }
    this.#waiting.set(name, speaking);
    return answer;
  }
  #withRoom<T>(act: () => Promise<T>): Promise<T> {
    return withRoom(act, async () => {
      const idle = this.#waiting.values().find((one) => !one.sequence.swapped);
      if (idle === undefined) return false;
      let n = 0;
      await withRoom(
        () => this.#cache.swapOut(idle.sequence, this.#tiers[n]!),
        async () => ++n < this.#tiers.length,
      );
      return true;
    });
  }
}
/** Three turns of each of some people: all answers, in order. */
export async function converse(all: Conversations, people: number, onTurn?: () => void): Promise<number[][]> {
  const answers: number[][] = [];
  for (let turn = 0; turn < 3; turn++) {
    for (let name = 0; name < people; name++) {
      const said = Array.from({ length: 3 + (name % 3) }, (_, i) => (11 * name + 5 * turn + i) % 64);
      answers.push(await all.turn(name, said, 4));
      onTurn?.();
    }
  }
  return answers;
}

if (import.meta.main) {
  const model = TinyDecoder.create(1);
  const folder = await mkdtemp(join(tmpdir(), "heed-tiers-"));
  using cache = model.cache(12); // each conversation comes to six pages or seven
  const host = new HostTier({ maxBytes: 2 ** 15 });
  const disk = await FolderTier.open(folder, { maxBytes: 2 ** 20 });
  const places = (): string =>
    `${cache.stats().usedPages} of 12 pages; ${host.stats().entries} in memory, ${disk.stats().entries} in files`;
  let turns = 0;
  const answers = await converse(new Conversations(model, cache, [host, disk]), 8, () => {
    if (++turns % 4 === 0) console.log(`after ${turns} turns: ${places()}`);
  });
  cache.check();
  using large = model.cache(64);
  const expected = await converse(new Conversations(model, large, []), 8);
  console.log(`with room for all, ${large.stats().usedPages} pages would be in use`);
  console.log(`the same answers: ${JSON.stringify(answers) === JSON.stringify(expected)}`);
  await rm(folder, { recursive: true });
}
