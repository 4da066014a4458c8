/** Sequences that leave the cache and come back: the same rows, tokens and ids, or an error and no change. */
import { ArgumentError, DisposedError, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  FolderTier,
  HostTier,
  type KvCache,
  PageFileError,
  type Sequence,
  StateError,
  type Tier,
} from "../src/index.ts";
import { openPageFile } from "../src/page-file.ts";
import { writePageFile } from "../src/page-file-write.ts";
import { expectedPages, type SequenceContent } from "../src/snapshot.ts";
import { faultyCalls, temporaryFolder } from "./file-faults.ts";
import {
  append,
  booksOf,
  contents,
  expected,
  idsFrom,
  poisonAll,
  poisonedCache,
  poisonedGroups,
  poolOf,
  usage,
} from "./fixtures.ts";

/** Local and global layers of different shapes, orders and dtypes. */
function mixedCache(maxPages = 40): KvCache {
  const row = { numKvHeads: 2, headDim: 3, valueHeadDim: 2, maxPages };
  return poisonedGroups({
    groups: [
      { ...row, layers: [0, 2], pageSize: 4, window: 6, sinks: 3, layout: "token-major" },
      { ...row, layers: [1], pageSize: 8, dtype: "bfloat16" },
      { ...row, layers: [3], pageSize: 2, numKvHeads: 1, valuesInKeys: true },
    ],
    draftMargin: 2,
  });
}
const layersOf = (cache: KvCache): number[] => idsFrom(0, cache.layout.layers);
/** All that can be seen of a sequence but the numbers of its pages. */
function seen(cache: KvCache, s: Sequence): unknown {
  const nulls = cache.layout.groups.map((_, g) => [...s.pagesOf(g)].map((page) => page > 0));
  return {
    length: s.length,
    ids: s.tokenIds,
    nulls,
    rows: layersOf(cache).map((layer) => contents(cache, s, layer)),
  };
}
/** All that can be seen of a cache. */
function snapshot(cache: KvCache, sequences: readonly Sequence[]): unknown {
  return {
    usage: usage(cache),
    free: cache.layout.groups.map((_, g) => poolOf(cache, g).freePages()),
    sequences: sequences.map((s) => seen(cache, s)),
  };
}
const filled = (cache: KvCache, tokens: number, first = 0): Sequence => {
  const sequence = cache.open();
  append(cache, [[sequence, idsFrom(first, tokens)]]);
  return sequence;
};
const rejection = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => undefined,
    (e: unknown) => e,
  );
const host = (): HostTier => new HostTier({ maxBytes: 2 ** 30 });

describe("a sequence that is swapped out and in", () => {
  for (const kind of ["host", "folder"] as const) {
    test(`is the same as before, on other pages, and goes on as if nothing had been (${kind})`, async () => {
      using folder = temporaryFolder();
      const tier: Tier =
        kind === "host" ? host() : await FolderTier.open(join(folder.path, "t"), { maxBytes: 2 ** 30 });
      const chunks = fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 4 });
      await fc.assert(
        fc.asyncProperty(chunks, fc.nat({ max: 20 }), fc.nat({ max: 20 }), async (lengths, other, more) => {
          using cache = mixedCache();
          const sequence = cache.open();
          for (const n of lengths) append(cache, [[sequence, idsFrom(sequence.length, n)]]);
          const before = seen(cache, sequence);
          const { length } = sequence;
          await cache.swapOut(sequence, tier);
          cache.check();
          expect([sequence.swapped, sequence.length, cache.stats().usedPages, cache.stats().tokens]).toEqual([
            true,
            length,
            0,
            0,
          ]);
          expect(tier.stats().entries).toBe(1);
          poisonAll(cache);
          filled(cache, other, 500);
          await cache.swapIn(sequence);
          cache.check();
          expect(sequence.swapped).toBe(false);
          expect(seen(cache, sequence)).toEqual(before);
          expect(tier.stats()).toMatchObject({ entries: 0, bytes: 0 });
          append(cache, [[sequence, idsFrom(length, more)]]);
          const ids = idsFrom(0, length + more);
          expect(contents(cache, sequence, 1)).toEqual(expected(cache, ids, 1));
          expect([...sequence.tokenIds]).toEqual(ids);
        }),
        { numRuns: kind === "host" ? 60 : 15 },
      );
      if (kind === "folder") expect(readdirSync(join(folder.path, "t"))).toEqual([]);
    }, 60_000);
  }
  test("frees its pages tail first, and shared ones only for itself", async () => {
    using cache = poisonedCache();
    const a = filled(cache, 10);
    const [b] = a.fork() as [Sequence];
    const rows = seen(cache, a);
    await cache.swapOut(a, host());
    expect(cache.stats().usedPages).toBe(3);
    expect(seen(cache, b)).toEqual(rows);
    await cache.swapOut(b, host());
    expect([...poolOf(cache).freePages()].slice(-3)).toEqual([3, 2, 1]);
    await Promise.all([cache.swapIn(a), cache.swapIn(b)]);
    expect([seen(cache, a), seen(cache, b), cache.stats().usedPages]).toEqual([rows, rows, 6]);
    cache.check();
  });
  test("stores zeros where it has no token, not the rows of whoever had the page before", async () => {
    using cache = mixedCache();
    const sequence = filled(cache, 13);
    const tier = host();
    const kept: number[][] = [];
    const { put } = tier;
    tier.put = async (key, source, options) => {
      const last = source.header.groups.reduce((sum, g) => sum + g.pages, 0) - 1;
      kept.push([...new Float32Array((await source.page(last)).buffer)]); // group 2: one head, pages of 2 rows of 3
      return put.call(tier, key, source, options);
    };
    await cache.swapOut(sequence, tier);
    expect(kept[0]!.slice(0, 3)).toEqual(expected(cache, [12], 3).k);
    expect(kept[0]!.slice(3)).toEqual([0, 0, 0]);
    await cache.swapIn(sequence);
    for (const [g, { storage, layout }] of booksOf(cache).groups.entries()) {
      const tail = sequence.pagesOf(g).at(-1)!;
      expect(storage.readPage(tail)).toEqual(storage.readPage(tail, 13 % layout.pageSize));
    }
  });
  test("cannot be used until it is back, but released: then its tier forgets it", async () => {
    using cache = poisonedCache();
    const [a, b] = [filled(cache, 5), filled(cache, 3)];
    const tier = host();
    await cache.swapOut(a, tier);
    for (const use of [
      () => cache.reserve([{ sequence: a, tokens: 1 }]),
      () => a.fork(),
      () => a.truncate(0),
      () => cache.fence([a]),
    ])
      expect(use).toThrow(StateError);
    expect(await rejection(cache.swapOut(a, tier))).toBeInstanceOf(StateError);
    expect(await rejection(cache.save(a, "never"))).toBeInstanceOf(StateError);
    expect(await rejection(cache.swapIn(b))).toBeInstanceOf(StateError);
    a.release();
    expect(tier.stats()).toMatchObject({ entries: 0, bytes: 0 });
    expect(await rejection(cache.swapIn(a))).toBeInstanceOf(DisposedError);
    using step = cache.reserve([{ sequence: b, tokens: 1 }]);
    expect(await rejection(cache.swapOut(b, tier))).toBeInstanceOf(StateError);
    step.cancel();
    using other = poisonedCache();
    expect(await rejection(other.swapOut(b, tier))).toBeInstanceOf(ArgumentError);
    await cache.swapOut(b, tier);
    cache[Symbol.dispose]();
    expect(tier.stats().entries).toBe(0);
  });
});
describe("a swap that fails changes nothing", () => {
  test("for lack of room in the tier", async () => {
    using cache = poisonedCache();
    const sequence = filled(cache, 9);
    const before = snapshot(cache, [sequence]);
    expect(await rejection(cache.swapOut(sequence, new HostTier({ maxBytes: 100 })))).toBeInstanceOf(
      OutOfMemoryError,
    );
    cache.check();
    expect(snapshot(cache, [sequence])).toEqual(before);
  });
  test("for lack of pages in one group, and works once there are some", async () => {
    using cache = mixedCache(12);
    const sequence = filled(cache, 20);
    const rows = seen(cache, sequence);
    const tier = host();
    await cache.swapOut(sequence, tier);
    const blocker = filled(cache, 8, 900);
    const before = snapshot(cache, [blocker]);
    expect(await rejection(cache.swapIn(sequence))).toBeInstanceOf(OutOfMemoryError);
    expect(snapshot(cache, [blocker])).toEqual(before);
    expect([sequence.length, tier.stats().entries]).toEqual([20, 1]);
    cache.check();
    blocker.release();
    await cache.swapIn(sequence);
    expect(seen(cache, sequence)).toEqual(rows);
  });
  test("at each call into the system that can fail, and at each page", async () => {
    using folder = temporaryFolder();
    const faults = faultyCalls(400);
    const tier = await FolderTier.open(folder.path, { maxBytes: 2 ** 30 }, faults.calls);
    using cache = mixedCache();
    const [sequence, other] = [filled(cache, 21), filled(cache, 5, 300)];
    const before = snapshot(cache, [sequence, other]);
    let [out, back] = [0, 0];
    for (let n = 1; ; n++, out++) {
      faults.arm(n);
      if ((await rejection(cache.swapOut(sequence, tier))) === undefined) break;
      expect(snapshot(cache, [sequence, other])).toEqual(before);
      expect([readdirSync(folder.path).length, tier.stats().bytes]).toEqual([0, 0]);
      cache.check();
    }
    const away = snapshot(cache, [other]);
    for (let n = 1; ; n++, back++) {
      faults.arm(n);
      if ((await rejection(cache.swapIn(sequence))) === undefined) break;
      expect(snapshot(cache, [other])).toEqual(away);
      expect([sequence.swapped, readdirSync(folder.path).length]).toEqual([true, 1]);
      cache.check();
    }
    expect(out).toBeGreaterThan(9);
    expect(back).toBeGreaterThan(9);
    expect(seen(cache, sequence)).toEqual((before as { sequences: unknown[] }).sequences[0]);
  }, 60_000);
  test("when its signal aborts, on the way out and back", async () => {
    using cache = poisonedCache();
    const sequence = filled(cache, 9);
    const before = snapshot(cache, [sequence]);
    const aborting = (): { signal: AbortSignal; onProgress: () => void } => {
      const stop = new AbortController();
      return { signal: stop.signal, onProgress: () => stop.abort(new Error("enough")) };
    };
    const tier = host();
    expect(await rejection(cache.swapOut(sequence, tier, aborting()))).toMatchObject({ message: "enough" });
    expect(snapshot(cache, [sequence])).toEqual(before);
    await cache.swapOut(sequence, tier);
    const free = poolOf(cache).freePages();
    expect(await rejection(cache.swapIn(sequence, aborting()))).toMatchObject({ message: "enough" });
    expect(poolOf(cache).freePages()).toEqual(free);
    cache.check();
    await cache.swapIn(sequence);
    cache.check();
  });
  test("when a page in the tier is damaged: the error names the page", async () => {
    using folder = temporaryFolder();
    const tier = await FolderTier.open(folder.path, { maxBytes: 2 ** 30 });
    using cache = poisonedCache();
    const sequence = filled(cache, 9);
    await cache.swapOut(sequence, tier);
    const path = join(folder.path, readdirSync(folder.path)[0]!);
    const good = new Uint8Array(readFileSync(path));
    const bad = good.slice();
    bad[bad.length - 1]! ^= 1;
    writeFileSync(path, bad);
    const free = poolOf(cache).freePages();
    expect(await rejection(cache.swapIn(sequence))).toMatchObject({
      code: "HEED_PAGE_FILE",
      reason: "checksum",
      details: { page: 2 },
    });
    expect(poolOf(cache).freePages()).toEqual(free);
    writeFileSync(path, good);
    await cache.swapIn(sequence);
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 9), 0));
  });
});
describe("while pages are on their way", () => {
  test("a released sequence's pages stay until the transfer has ended, and nothing is left in the tier", async () => {
    using folder = temporaryFolder();
    const tier = await FolderTier.open(folder.path, { maxBytes: 2 ** 30 });
    const drops: Promise<void>[] = [];
    const drop = tier.drop.bind(tier);
    tier.drop = (key) => drops[drops.push(drop(key)) - 1]!;
    for (const way of ["out", "in"] as const) {
      using cache = poisonedCache();
      const sequence = filled(cache, 9);
      if (way === "in") await cache.swapOut(sequence, tier);
      const work = rejection(way === "out" ? cache.swapOut(sequence, tier) : cache.swapIn(sequence));
      expect(() => cache.reserve([{ sequence, tokens: 1 }])).toThrow(StateError);
      cache.check();
      sequence.release();
      expect(cache.stats().inFlightPages).toBe(3);
      cache.check();
      expect(await work).toBeInstanceOf(DisposedError);
      expect([cache.stats().inFlightPages, cache.stats().freePages]).toEqual([0, 12]);
      cache.check();
      await Promise.all(drops); // nobody else waits for them
      expect([tier.stats().entries, readdirSync(folder.path).length]).toEqual([0, 0]);
    }
  });
  test("a sequence that is being saved can go on, be cut and be released: the file has what it was", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    using cache = poisonedCache({ maxPages: 20 });
    const sequence = filled(cache, 10);
    const before = seen(cache, sequence);
    const work = cache.save(sequence, path);
    append(cache, [[sequence, idsFrom(70, 3)]]);
    sequence.truncate(5);
    append(cache, [[sequence, idsFrom(80, 9)]]);
    sequence.release();
    filled(cache, 20, 200);
    await work;
    cache.check();
    expect(seen(cache, await cache.load(path))).toEqual(before);
  });
  test("a cache that is disposed ends the transfer with an error", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    const make = (): [KvCache, Sequence] => {
      const cache = poisonedCache();
      return [cache, filled(cache, 9)];
    };
    const [first, a] = make();
    await first.save(a, path);
    const work = [first.save(a, join(folder.path, "t")), first.load(path)].map(rejection);
    first[Symbol.dispose]();
    for (const error of await Promise.all(work)) expect(error).toBeInstanceOf(DisposedError);
    expect(readdirSync(folder.path)).toEqual(["s"]);
  });
});
describe("a saved sequence", () => {
  test("is loaded the same by another cache of the same groups, of any number of pages", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: 30 }), fc.boolean(), async (length, withIds) => {
        using from = mixedCache();
        using to = mixedCache(60);
        const a = filled(from, length);
        if (!withIds) booksOf(from).sequences.forEach((s) => (s.tokenIds = undefined));
        await from.save(a, path);
        filled(to, 7, 100);
        const b = await to.load(path);
        to.check();
        expect(seen(to, b)).toEqual(seen(from, a));
      }),
      { numRuns: 25 },
    );
  }, 60_000);
  test("that is damaged or cut off anywhere is an error, and the cache as it was", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    using cache = mixedCache();
    const sequence = filled(cache, 13);
    await cache.save(sequence, path);
    const good = new Uint8Array(readFileSync(path));
    const before = snapshot(cache, [sequence]);
    const place = fc.integer({ min: 0, max: good.length - 1 });
    await fc.assert(
      fc.asyncProperty(place, fc.nat({ max: 7 }), fc.boolean(), async (at, bit, cut) => {
        const bad = good.slice();
        bad[at]! ^= 1 << bit;
        writeFileSync(path, bad);
        if (cut) truncateSync(path, at);
        expect(await rejection(cache.load(path))).toBeInstanceOf(PageFileError);
        cache.check();
        expect(snapshot(cache, [sequence])).toEqual(before);
      }),
      { numRuns: 150 },
    );
  }, 60_000);
  test("of other groups is refused, and one that does not fit into the free pages", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    using cache = poisonedCache();
    await cache.save(filled(cache, 9), path);
    for (const other of [
      { window: 8 },
      { dtype: "bfloat16" },
      { pageSize: 2 },
      { layers: 3 },
      { layout: "token-major" },
    ] as const) {
      using to = poisonedCache(other);
      expect(await rejection(to.load(path))).toMatchObject({ code: "HEED_PAGE_FILE", reason: "layout" });
    }
    using small = poisonedCache({ maxPages: 2 });
    expect(await rejection(small.load(path))).toBeInstanceOf(OutOfMemoryError);
    expect(small.stats()).toMatchObject({ freePages: 2, sequences: 0, tokens: 0 });
    small.check();
  });
  test("whose header is forged is refused, as far as it could not have been written, and no page is taken", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    using cache = mixedCache();
    await cache.save(filled(cache, 20), path);
    await using file = await openPageFile(path, expectedPages(booksOf(cache)));
    const { header } = file;
    const { groups } = header;
    const content = header.content as SequenceContent;
    expect(content.from).toEqual([3, 0, 0]); // pages 1 and 2 of the first group are behind its window
    const fewer = groups.with(0, { ...groups[0]!, pages: groups[0]!.pages - 1 });
    const forged: { readonly groups?: typeof groups; readonly content: unknown }[] = [
      ...[null, 1, [], {}].map((other) => ({ content: other })),
      ...[19, 24, -1, 2 ** 53, "20"].map((length) => ({ content: { ...content, length } })),
      ...[[], [-2], [0.5], null].map((ids) => ({
        content: { ...content, tokenIds: ids && [...ids, ...content.tokenIds.slice(1)] },
      })),
      ...[[2, 0, 0], [4, 0, 0], [3, 0], [3, 1, 0], [3, -1, 0], null].map((from) => ({
        content: { ...content, from },
      })),
      { groups: fewer, content: { ...content, from: [4, 0, 0] } },
    ];
    const before = usage(cache);
    for (const other of forged) {
      const sizes = (other.groups ?? groups).flatMap((g) => new Array<number>(g.pages).fill(g.pageBytes));
      await writePageFile(path, { header: { ...header, ...other }, page: (i) => new Uint8Array(sizes[i]!) });
      expect(await rejection(cache.load(path))).toMatchObject({ code: "HEED_PAGE_FILE", reason: "header" });
      expect(usage(cache)).toEqual(before);
    }
    cache.check();
  });
});
