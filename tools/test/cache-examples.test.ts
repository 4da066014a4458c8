import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FolderTier, HostTier, type PageSource, type Tier } from "@heed/kvcache";
import { OutOfMemoryError } from "@heed/tensor";
import { beamSearch, bestChildren, type Hypothesis } from "../../docs/examples/beam-search.ts";
import { Conversations, converse } from "../../docs/examples/cache-tiers.ts";
import { draw, generator, sample } from "../../docs/examples/parallel-sampling.ts";
import { speculate } from "../../docs/examples/speculative-decoding.ts";
import { likeliest, TinyDecoder } from "../../docs/examples/tiny-decoder.ts";

const SEEDS = [1, 2, 3, 4];
const promptOf = (seed: number, length: number): number[] =>
  Array.from({ length }, (_, i) => (13 * seed + 29 * i) % TinyDecoder.vocabSize);
/** Tokens chosen from full passes over everything before them, without a cache. */
async function continued(
  model: TinyDecoder,
  prompt: readonly number[],
  tokens: number,
  choose: (logits: Float32Array) => number,
): Promise<number[]> {
  const ids = [...prompt];
  while (ids.length < prompt.length + tokens) ids.push(choose((await model.logits(ids)).at(-1)!));
  return ids.slice(prompt.length);
}

describe("speculative decoding", () => {
  test.each(SEEDS)("gives what full passes give, in fewer steps; decoder %d", async (seed) => {
    const target = TinyDecoder.create(seed);
    const prompt = promptOf(seed, 3 + seed);
    const { made, rounds } = await speculate(target, target.firstLayer(), prompt, { tokens: 30, width: 4 });
    expect(made).toEqual(await continued(target, prompt, 30, likeliest));
    expect(rounds.length).toBeLessThan(25);
    expect(rounds.reduce((n, { kept }) => n + kept + 1, 0)).toBe(30);
  });
  test.each([
    ["that is always right takes tokens / (width + 1) steps", 0, 6],
    ["that is of no use takes a step a token at most", 77, 30],
  ])("with a draft %s", async (_, seedOffset, most) => {
    const target = TinyDecoder.create(1);
    const draft = TinyDecoder.create(1 + seedOffset);
    const { made, rounds } = await speculate(target, draft, promptOf(1, 5), { tokens: 30, width: 4 });
    expect(made).toEqual(await continued(target, promptOf(1, 5), 30, likeliest));
    expect(rounds.length).toBeLessThanOrEqual(most);
  });
  test("with a width of 0 is plain decoding", async () => {
    const target = TinyDecoder.create(2);
    const { made, rounds } = await speculate(target, target, promptOf(2, 9), { tokens: 8, width: 0 });
    expect(made).toEqual(await continued(target, promptOf(2, 9), 8, likeliest));
    expect(rounds).toHaveLength(8);
  });
});

describe("beam search", () => {
  /** The same search, with a full pass over every hypothesis at every step. */
  async function bruteForce(
    model: TinyDecoder,
    prompt: readonly number[],
    tokens: number,
    width: number,
  ): Promise<Hypothesis[]> {
    let beams: Hypothesis[] = [{ ids: [], score: 0 }];
    for (let t = 0; t < tokens; t++) {
      const passes = await Promise.all(beams.map(({ ids }) => model.logits([...prompt, ...ids])));
      const last = passes.map((rows) => rows.at(-1)!);
      beams = bestChildren(beams, last, width);
    }
    return beams;
  }
  test.each(SEEDS)("finds what a search without a cache finds; decoder %d", async (seed) => {
    const model = TinyDecoder.create(seed);
    const prompt = promptOf(seed, 9 + seed);
    using cache = model.cache(40);
    const found = await beamSearch(model, cache, prompt, {
      tokens: 9,
      width: 5,
      onStep: () => cache.check(),
    });
    const expected = await bruteForce(model, prompt, 9, 5);
    expect(found.map(({ ids }) => ids)).toEqual(expected.map(({ ids }) => ids));
    for (const [i, { score }] of found.entries()) expect(score).toBeCloseTo(expected[i]!.score, 4);
    expect(cache.stats().usedPages).toBe(0);
  });
  test("ranks children by the probability of the whole hypothesis, not of its last token", () => {
    const parents = [-1, -9].map((score, i) => ({ ids: [i], score }));
    const best = bestChildren(parents, [Float32Array.of(0, 0), Float32Array.of(50, 0)], 3);
    expect(best.map(({ parent, ids }) => [parent, ids])).toEqual([
      [0, [0, 0]],
      [0, [0, 1]],
      [1, [1, 0]],
    ]);
    expect(best[0]!.score).toBeCloseTo(-1 - Math.LN2, 12);
    expect(best[2]!.score).toBeCloseTo(-9, 12);
  });
  test("shares pages as far as the beams agree", async () => {
    const model = TinyDecoder.create(1);
    using cache = model.cache(40);
    const used: number[] = [];
    const onStep = (): void => void used.push(cache.stats().usedPages);
    const found = await beamSearch(model, cache, promptOf(1, 32), { tokens: 2, width: 4, onStep });
    const branches = new Set(found.map(({ ids }) => ids[0])).size; // the last token is not in the cache yet
    expect(branches).toBe(3);
    expect(used).toEqual([8, 8 + branches]);
  });
});

describe("parallel sampling", () => {
  const options = { tokens: 12, temperature: 0.8, seeds: [5, 6, 7] };
  test("gives each seed what full passes give it, whoever else is sampled", async () => {
    const model = TinyDecoder.create(3);
    const prompt = promptOf(3, 10);
    using cache = model.cache(40);
    const answers = await sample(model, cache, prompt, options);
    for (const [i, seed] of options.seeds.entries()) {
      const uniform = generator(seed);
      const choose = (logits: Float32Array): number => draw(logits, options.temperature, uniform());
      expect(answers[i]).toEqual(await continued(model, prompt, options.tokens, choose));
    }
    expect(await sample(model, cache, prompt, { ...options, seeds: [7] })).toEqual([answers[2]!]);
    expect(new Set(answers.map(String)).size).toBe(3);
  });
  test("computes the prompt once; its full pages stay shared", async () => {
    const model = TinyDecoder.create(3);
    using cache = model.cache(40);
    const used: [string, number][] = [];
    const onStep = (what: string): void => void used.push([what, cache.stats().usedPages]);
    await sample(model, cache, promptOf(3, 10), { ...options, tokens: 4, onStep });
    expect(used).toEqual([
      ["the prompt", 3],
      ["3 forks", 3],
      ["1 more each", 2 + 3],
      ["2 more each", 2 + 3],
      ["3 more each", 2 + 6],
    ]);
    expect(cache.stats().usedPages).toBe(0);
  });
  test("draws tokens as often as their probability says", () => {
    const logits = Float32Array.of(Math.log(1), Math.log(2), Math.log(5));
    const counts = [0, 0, 0];
    for (let i = 0; i < 8000; i++) counts[draw(logits, 1, (i + 0.5) / 8000)]!++;
    expect(counts).toEqual([1000, 2000, 5000]);
    expect(draw(logits, 0.01, 0.01)).toBe(2);
  });
});

describe("tiers", () => {
  let folder = "";
  beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), "heed-cache-examples-"))));
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** A tier that counts what it was given. */
  function counting(tier: Tier): Tier & { puts: number; takes: number } {
    return {
      puts: 0,
      takes: 0,
      async put(key: string, source: PageSource): Promise<void> {
        await tier.put(key, source);
        this.puts++;
      },
      async take(key, header, sink): Promise<void> {
        await tier.take(key, header, sink);
        this.takes++;
      },
      drop: (key) => tier.drop(key),
      stats: () => tier.stats(),
    };
  }
  test("change no answer: a sixth of the pages they need serves all conversations", async () => {
    const model = TinyDecoder.create(4);
    const [host, disk] = [
      counting(new HostTier({ maxBytes: 2 ** 15 })),
      counting(await FolderTier.open(folder, { maxBytes: 2 ** 20 })),
    ];
    using small = model.cache(8);
    using large = model.cache(64);
    const answers = await converse(new Conversations(model, small, [host, disk]), 8, () => small.check());
    expect(answers).toEqual(await converse(new Conversations(model, large, []), 8));
    expect(large.stats().usedPages).toBeGreaterThan(6 * 7);
    for (const { puts, takes } of [host, disk]) expect([puts > 4, takes > 4]).toEqual([true, true]);
  });
  test("answers what full passes over a whole conversation answer", async () => {
    const model = TinyDecoder.create(2);
    using cache = model.cache(8);
    const conversations = new Conversations(model, cache, [new HostTier({ maxBytes: 2 ** 20 })]);
    const heard: number[][] = [[], [], []];
    for (let turn = 0; turn < 3; turn++) {
      for (const [name, ids] of heard.entries()) {
        const said = promptOf(name + turn, 2 + turn);
        const answer = await conversations.turn(name, said, 3);
        expect(answer).toEqual(await continued(model, [...ids, ...said], 3, likeliest));
        ids.push(...said, ...answer);
      }
    }
  });
  test("that are full leave the error to the caller", async () => {
    const model = TinyDecoder.create(4);
    using cache = model.cache(8);
    const conversations = new Conversations(model, cache, [new HostTier({ maxBytes: 100 })]);
    await expect(converse(conversations, 8)).rejects.toThrow(OutOfMemoryError);
    cache.check();
  });
});
