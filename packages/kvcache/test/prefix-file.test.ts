/** Published prefixes in a file: what is loaded again is what was saved, and what is damaged is a miss. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  HostTier,
  type KvCache,
  type LoadedPrefixes,
  PageFileError,
  type Sequence,
  StateError,
} from "../src/index.ts";
import { temporaryFolder } from "./file-faults.ts";
import { append, contents, expected, idsFrom, poisonedGroups, poolOf, usage } from "./fixtures.ts";

const row = { numKvHeads: 1, headDim: 3 };
function cacheOf(maxPages = 40, model?: string): KvCache {
  return poisonedGroups({
    groups: [
      { ...row, layers: [0], pageSize: 4, maxPages },
      {
        ...row,
        layers: [1],
        pageSize: 2,
        maxPages: 2 * maxPages,
        window: 5,
        sinks: 2,
        layout: "token-major",
      },
    ],
    prefixes: { model },
    draftMargin: 6,
  });
}
const fill = (cache: KvCache, ids: readonly number[], namespace = ""): Sequence => {
  const sequence = cache.open({ namespace });
  append(cache, [[sequence, ids]]);
  return sequence;
};
/** Keys of what is published, in order. */
const keys = (cache: KvCache): string[] =>
  cache
    .prefixes()
    .map((entry) => entry.key)
    .sort();
/** A sequence over the longest prefix of the ids, whose rows are right where the next query sees them. */
function reuse(cache: KvCache, ids: readonly number[], namespace = ""): Sequence {
  const sequence = cache.open({ match: cache.match(ids, { namespace }) });
  const { length } = sequence;
  expect(contents(cache, sequence, 0)).toEqual(expected(cache, ids.slice(0, length), 0));
  const near = (rows: { k: number[] }): number[] => rows.k.slice(3 * Math.max(0, length - 4));
  expect(near(contents(cache, sequence, 1))).toEqual(near(expected(cache, ids.slice(0, length), 1)));
  return sequence;
}
const rejection = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => undefined,
    (e: unknown) => e,
  );
const LINES = fc.array(fc.tuple(fc.constantFrom("", "b"), fc.array(fc.nat({ max: 1 }), { maxLength: 18 })), {
  maxLength: 5,
});

describe("a file of prefixes", () => {
  test("gives another cache the same blocks, rows included, found under the same keys", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    await fc.assert(
      fc.asyncProperty(LINES, fc.boolean(), async (lines, stay) => {
        using from = cacheOf();
        using to = cacheOf(60);
        const made = lines.map(([namespace, ids]) => fill(from, ids, namespace));
        if (!stay) for (const sequence of made) sequence.release();
        const saved = await from.savePrefixes(path);
        from.check();
        expect(saved).toBe(keys(from).length);
        expect(await to.loadPrefixes(path)).toEqual({ loaded: saved, known: 0, damaged: 0, skipped: 0 });
        to.check();
        expect(keys(to)).toEqual(keys(from));
        for (const [namespace, ids] of lines) {
          const [a, b] = [reuse(from, [...ids, 9], namespace), reuse(to, [...ids, 9], namespace)];
          expect(b.length).toBe(a.length);
          b.release();
        }
        expect(to.stats()).toMatchObject({ usedPages: 0, pinnedPages: 0 });
        expect(await to.loadPrefixes(path)).toEqual({ loaded: 0, known: saved, damaged: 0, skipped: 0 });
        to.check();
      }),
      { numRuns: 15 },
    );
  }, 60_000);
  test("takes free pages only, and evicts tails before heads afterwards", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using from = cacheOf();
    fill(from, idsFrom(0, 24)).release();
    expect(await from.savePrefixes(path)).toBe(6);
    using to = cacheOf(5);
    fill(to, idsFrom(50, 8)).release();
    const before = keys(to);
    expect(await to.loadPrefixes(path)).toEqual({ loaded: 3, known: 0, damaged: 0, skipped: 3 });
    to.check();
    expect(keys(to)).toEqual(expect.arrayContaining(before));
    expect(poolOf(to).free).toBe(0);
    using _ = to.match([...idsFrom(50, 8), 1]); // the pages of these are kept
    const step = to.reserve([{ sequence: to.open(), tokens: 8 }]);
    using left = to.match([...idsFrom(0, 24), 1]);
    expect(left.length).toBe(4);
    step.cancel();
  });
  test("is saved while the cache goes on: pages that are being written out are neither evicted nor changed", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using cache = cacheOf(6);
    const sequence = fill(cache, idsFrom(0, 12));
    const before = keys(cache);
    const work = cache.savePrefixes(path);
    expect(() => cache.reset()).toThrow(StateError);
    sequence.truncate(6);
    append(cache, [[sequence, [70, 71, 72]]]);
    sequence.release();
    expect(cache.stats().pinnedPages).toBeGreaterThan(0);
    cache.check();
    await work;
    cache.check();
    expect(cache.stats().pinnedPages).toBe(0);
    using to = cacheOf();
    await to.loadPrefixes(path);
    expect(keys(to)).toEqual(before);
    expect(reuse(to, idsFrom(0, 13)).length).toBe(12);
  });
});
describe("in a cache that keeps prefixes", () => {
  test("a sequence that comes back goes on publishing, whether or not its blocks have gone meanwhile", async () => {
    for (const evict of [false, true]) {
      using cache = cacheOf(6);
      const sequence = fill(cache, idsFrom(0, 10));
      await cache.swapOut(sequence, new HostTier({ maxBytes: 2 ** 20 }));
      cache.check();
      using match = cache.match([...idsFrom(0, 10), 1]); // its pages are cached
      expect(match.length).toBe(8);
      match[Symbol.dispose]();
      if (evict) fill(cache, idsFrom(100, 24)).release();
      await cache.swapIn(sequence);
      append(cache, [[sequence, idsFrom(10, 3)]]);
      cache.check();
      expect([...sequence.tokenIds]).toEqual(idsFrom(0, 13));
      if (!evict) expect(cache.match(idsFrom(0, 14)).length).toBe(12);
      expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 13), 0));
    }
  });
  test("a loaded sequence publishes its blocks, under the owner given, with its next commit", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    using from = cacheOf();
    await from.save(fill(from, idsFrom(0, 11)), path);
    using to = cacheOf();
    const sequence = await to.load(path, { namespace: "b" });
    expect(to.match(idsFrom(0, 12), { namespace: "b" }).length).toBe(0);
    append(to, [[sequence, [11]]]);
    to.check();
    expect([to.match(idsFrom(0, 13), { namespace: "b" }).length, to.match(idsFrom(0, 13)).length]).toEqual([
      12, 0,
    ]);
  });
});
describe("a damaged file of prefixes", () => {
  test("is a miss from the damaged page on, never wrong rows, or an error and no change", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using from = cacheOf();
    const lines = [idsFrom(0, 16), [...idsFrom(0, 8), ...idsFrom(40, 8)]];
    for (const ids of lines) fill(from, ids).release();
    const saved = await from.savePrefixes(path);
    const good = new Uint8Array(readFileSync(path));
    using empty = cacheOf();
    let misses = 0;
    const place = fc.integer({ min: 0, max: good.length - 1 });
    await fc.assert(
      fc.asyncProperty(place, fc.nat({ max: 7 }), fc.boolean(), async (at, bit, cut) => {
        const bad = good.slice();
        bad[at]! ^= 1 << bit;
        writeFileSync(path, bad);
        if (cut) truncateSync(path, at);
        const start = usage(empty);
        const result = await empty.loadPrefixes(path).catch((e: unknown) => e);
        empty.check();
        if (result instanceof PageFileError) expect(usage(empty)).toEqual(start);
        else {
          const { loaded, damaged, skipped } = result as LoadedPrefixes;
          expect([loaded + damaged, skipped]).toEqual([saved, 0]);
          expect(damaged).toBeGreaterThan(0);
          misses++;
          for (const ids of lines) reuse(empty, [...ids, 1]).release();
        }
        empty.reset();
      }),
      { numRuns: 200 },
    );
    expect(misses).toBeGreaterThan(10);
  }, 60_000);
  test("or one of another model, layout or kind is refused", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using from = cacheOf(40, "a");
    const sequence = fill(from, idsFrom(0, 9));
    await from.savePrefixes(path);
    using other = cacheOf(40, "b");
    expect(await rejection(other.loadPrefixes(path))).toMatchObject({
      code: "HEED_PAGE_FILE",
      reason: "header",
    });
    expect(await rejection(from.load(path))).toMatchObject({ reason: "header" });
    await from.save(sequence, path);
    expect(await rejection(from.loadPrefixes(path))).toMatchObject({ reason: "header" });
    using bare = poisonedGroups({ groups: [{ ...row, layers: [0], maxPages: 3 }] });
    expect(await rejection(bare.loadPrefixes(path))).toBeInstanceOf(StateError);
    expect(await rejection(bare.savePrefixes(path))).toBeInstanceOf(StateError);
  });
  test("that was stopped by its signal leaves what came before it, and the books in order", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using from = cacheOf();
    fill(from, idsFrom(0, 16));
    await from.savePrefixes(path);
    using to = cacheOf();
    const stop = new AbortController();
    const onProgress = (done: number): void => void (done === 2 && stop.abort(new Error("enough")));
    expect(await rejection(to.loadPrefixes(path, { signal: stop.signal, onProgress }))).toMatchObject({
      message: "enough",
    });
    to.check();
    expect([keys(to).length, to.stats().pinnedPages]).toEqual([2, 0]);
  });
});
