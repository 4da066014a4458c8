import { ArgumentError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import {
  HostTier,
  type KvCache,
  type OpenOptions,
  type PrefixOwner,
  type Sequence,
  StateError,
} from "../src/index.ts";
import { type KeyFields, rootKey } from "../src/prefix-keys.ts";
import { temporaryFolder } from "./file-faults.ts";
import { append, idsFrom, poisonedCache, poolOf } from "./fixtures.ts";

const cacheOf = (more = {}): KvCache =>
  poisonedCache({ layers: 1, numKvHeads: 1, headDim: 2, maxPages: 24, pageSize: 2, prefixes: true, ...more });
function compute(cache: KvCache, ids: readonly number[], options: OpenOptions = {}): Sequence {
  const sequence = cache.open(options);
  append(cache, [[sequence, ids]]);
  return sequence;
}
const found = (cache: KvCache, ids: readonly number[], owner: PrefixOwner = {}): number => {
  using match = cache.match(ids, owner);
  return match.length;
};
const IDS = idsFrom(0, 7);

describe("owners", () => {
  const owners: PrefixOwner[] = [
    {},
    { adapter: "" },
    { namespace: "a" },
    { adapter: "a" },
    { namespace: "a", adapter: "a" },
    { namespace: "ab" },
    { namespace: "a", adapter: "b" },
    { namespace: "\ud800" },
    { namespace: "\udfff" },
    { namespace: "\ufffd" },
    { namespace: 'a","b' },
    { adapter: "null" },
    { namespace: "x|y" },
    { namespace: "x", adapter: "y|undefined" },
  ];
  test("find nothing of one another's, ambiguous names included", () => {
    for (const one of owners) {
      using cache = cacheOf();
      compute(cache, IDS, one);
      for (const other of owners)
        expect([other, found(cache, IDS, other)]).toEqual([other, one === other ? 6 : 0]);
    }
  });
  test("have keys of their own", () => {
    using cache = poisonedCache({ maxPages: 99, pageSize: 2, layers: 1, prefixes: true });
    for (const owner of owners) compute(cache, IDS, owner);
    expect(new Set(cache.prefixes().map(({ key }) => key)).size).toBe(3 * owners.length);
    cache.check();
  });
  test.each([
    [[["t", "1"]], [["t", 1]]],
    [
      [
        ["t", undefined],
        ["u", undefined],
      ],
      [["t", "u"]],
    ],
    [[["t", ""]], [["t", undefined]]],
    [
      [
        ["t", "x"],
        ["u", "y"],
      ],
      [["t", "xustringy"]],
    ],
    [[["t", "x"]], [["tstringx", ""]]],
  ] as [KeyFields, KeyFields][])("the fields %j and %j have different keys", (a, b) => {
    expect(Buffer.from(rootKey(a)).equals(rootKey(b))).toBe(false);
  });
  test("any two lists of fields have different keys unless they are equal", () => {
    const text = fc.array(fc.oneof(fc.nat(0xffff), fc.constantFrom(0, 1, 0xd800)), { maxLength: 3 });
    const name = text.map((units) => String.fromCharCode(...units));
    const value = fc.oneof(name, fc.constantFrom("\ud800", "\ufffd", "1", undefined), fc.nat(2));
    const fields = fc.array(fc.tuple(fc.oneof(fc.constantFrom("", "a"), name), value), { maxLength: 3 });
    fc.assert(
      fc.property(fields, fields, (a, b) => {
        const same = a.length === b.length && a.every(([tag, v], i) => tag === b[i]![0] && v === b[i]![1]);
        expect(Buffer.from(rootKey(a)).equals(rootKey(b))).toBe(same);
      }),
    );
  });
  test("a sequence that begins with a match publishes under the match's owner", () => {
    using cache = cacheOf();
    compute(cache, [0, 1, 2], { namespace: "a", adapter: "x" });
    using match = cache.match([0, 1, 2], { namespace: "a", adapter: "x" });
    append(cache, [[cache.open({ match }), [2, 3]]]);
    expect(found(cache, [0, 1, 2, 3, 4], { namespace: "a", adapter: "x" })).toBe(4);
    expect(found(cache, [0, 1, 2, 3, 4])).toBe(0);
  });
  test("model, layout and block size are part of every key", () => {
    const keyOf = (more: object): string => {
      using cache = poisonedCache({ maxPages: 9, pageSize: 2, prefixes: true, ...more });
      compute(cache, [0, 1, 2, 3, 4, 5, 6, 7]);
      return cache.prefixes()[0]!.parent;
    };
    const keys = [
      {},
      { prefixes: { model: "m" } },
      { prefixes: { model: "" } },
      { dtype: "bfloat16" },
      { pageSize: 4 },
      { headDim: 4 },
    ];
    expect(new Set(keys.map(keyOf)).size).toBe(keys.length);
    expect(keyOf({})).toBe(keyOf({}));
  });
  test("names that are no strings, and priorities that are none, are refused", () => {
    using cache = cacheOf();
    expect(() => cache.open({ namespace: 1 as never })).toThrow(ArgumentError);
    expect(() => cache.match([1], { adapter: null as never })).toThrow(ArgumentError);
    for (const options of [{ priority: -1 }, { priority: 101 }, { priority: 0.5 }, { expires: NaN }])
      expect(() => cache.open(options)).toThrow(ArgumentError);
    expect(cache.stats().sequences).toBe(0);
  });
});

describe("invalidation", () => {
  test("of an adapter leaves other adapters, and the model without one, as they are", () => {
    using cache = cacheOf();
    for (const adapter of [undefined, "a", "b"]) compute(cache, IDS, { adapter }).release();
    cache.invalidate({ adapter: "a" });
    expect([undefined, "a", "b"].map((adapter) => found(cache, IDS, { adapter }))).toEqual([6, 0, 6]);
    cache.check();
    compute(cache, IDS, { adapter: "a" });
    expect(found(cache, IDS, { adapter: "a" })).toBe(6);
  });
  test("of all frees idle pages at once and others when they are idle", () => {
    using cache = cacheOf();
    compute(cache, [50, 51, 52]).release();
    const live = compute(cache, IDS);
    cache.invalidate();
    expect(cache.stats()).toMatchObject({
      cachedPages: 0,
      usedPages: 4,
      freePages: 20,
      prefixes: { blocks: 0 },
    });
    live.release();
    expect(poolOf(cache).free).toBe(24);
    cache.check();
  });
  test("a sequence from before it publishes nothing; one from after does", () => {
    using cache = cacheOf();
    const before = compute(cache, IDS);
    cache.invalidate();
    append(cache, [[before, [7, 8, 9]]]);
    expect(found(cache, idsFrom(0, 10))).toBe(0);
    compute(cache, IDS);
    append(cache, [[before, [10, 11]]]);
    expect(found(cache, idsFrom(0, 12))).toBe(6);
    cache.check();
  });
  test("a match from before it cannot be used", () => {
    using cache = cacheOf();
    compute(cache, IDS).release();
    using match = cache.match(IDS);
    cache.invalidate();
    cache.check();
    expect(() => cache.open({ match })).toThrow(StateError);
    match[Symbol.dispose]();
    expect(poolOf(cache).free).toBe(24);
    cache.check();
  });
  test.each([{}, { adapter: "a" }])("new entries have other keys than the old ones: %j", (what) => {
    using cache = cacheOf();
    compute(cache, IDS, what).release();
    const keys = cache.prefixes().map(({ key }) => key);
    cache.invalidate(what);
    compute(cache, IDS, what);
    expect(cache.prefixes().length).toBe(3);
    expect(cache.prefixes().some(({ key }) => keys.includes(key))).toBe(false);
  });
});

describe("quotas", () => {
  test("a namespace that floods evicts its own, and another keeps all it has", () => {
    using cache = cacheOf({ prefixes: { quotas: { noisy: 4 } } });
    compute(cache, IDS, { namespace: "quiet" }).release();
    for (let i = 0; i < 40; i++) {
      compute(cache, idsFrom(100 + 10 * i, 7), { namespace: "noisy" }).release();
      cache.check();
    }
    expect(cache.prefixes().filter(({ namespace }) => namespace === "noisy").length).toBe(4);
    expect(found(cache, IDS, { namespace: "quiet" })).toBe(6);
  });
  test("the block that has gone unused the longest makes room, tail before head", () => {
    using cache = cacheOf({ prefixes: { quota: 4 } });
    compute(cache, [1, 2, 3, 4]).release();
    compute(cache, [5, 6, 7, 8]).release();
    expect(found(cache, [1, 2, 3, 4, 0])).toBe(4); // used again
    compute(cache, [9, 9]).release();
    expect(
      [
        [1, 2, 3, 4, 0],
        [5, 6, 7, 8, 0],
        [9, 9, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([4, 2, 2]);
    cache.check();
  });
  test("a block of lower priority makes room first, though it was used last; of equal ones the tail does", () => {
    using cache = cacheOf({ prefixes: { quota: 5 } });
    compute(cache, [1, 2, 3, 4], { priority: 80 }).release();
    compute(cache, [5, 6, 7, 8], { priority: 30 }).release();
    compute(cache, [9, 9]).release();
    expect(found(cache, [5, 6, 7, 8, 0])).toBe(4); // used last
    const left = (): number[] =>
      [
        [1, 2, 3, 4, 0],
        [5, 6, 7, 8, 0],
        [9, 9, 0],
        [10, 10, 0],
        [11, 11, 0],
        [12, 12, 0],
      ].map((ids) => found(cache, ids));
    compute(cache, [10, 10]).release();
    expect(left()).toEqual([4, 2, 2, 2, 0, 0]);
    compute(cache, [11, 11]).release();
    expect(left()).toEqual([4, 0, 2, 2, 2, 0]);
    compute(cache, [12, 12]).release(); // of the same priority as the three that are left with [1, 2, 3, 4]
    expect(left()).toEqual([4, 0, 0, 2, 2, 2]);
    cache.check();
  });
  test("a block of lower priority than all that could make room is not published", () => {
    using cache = cacheOf({ prefixes: { quota: 2 } });
    compute(cache, [1, 2, 3, 4], { priority: 60 }).release();
    compute(cache, [5, 6]).release();
    expect([found(cache, [1, 2, 3, 4, 0]), found(cache, [5, 6, 0])]).toEqual([4, 0]);
    expect(cache.stats()).toMatchObject({ cachedPages: 2, prefixes: { blocks: 2, refusedBlocks: 1 } });
    compute(cache, [7, 8], { priority: 60 }).release();
    expect([found(cache, [1, 2, 3, 4, 0]), found(cache, [7, 8, 0])]).toEqual([2, 2]);
    cache.check();
  });
  test("a priority that has expired counts as the default one", () => {
    let now = 0;
    using cache = cacheOf({ prefixes: { quota: 2 }, now: () => now });
    compute(cache, [3, 4], { priority: 70 }).release();
    compute(cache, [1, 2], { priority: 90, expires: 100 }).release();
    compute(cache, [5, 6]).release();
    expect(
      [
        [3, 4, 0],
        [1, 2, 0],
        [5, 6, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([2, 2, 0]); // [1, 2] was used last
    now = 100;
    compute(cache, [7, 8], { priority: 80 }).release();
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [7, 8, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([0, 2, 2]);
    cache.check();
  });
  test("a low priority that has gone leaves the order as it was", () => {
    using cache = cacheOf({ prefixes: { quota: 3 } });
    compute(cache, [1, 2], { priority: 0 }).release();
    compute(cache, [3, 4], { priority: 70 }).release();
    compute(cache, [5, 6], { priority: 60 }).release();
    compute(cache, [7, 8], { priority: 80 }).release();
    compute(cache, [9, 9], { priority: 80 }).release();
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [5, 6, 0],
        [7, 8, 0],
        [9, 9, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([0, 2, 0, 2, 2]);
    cache.check();
  });
  test("blocks in use make no room: nothing more is published", () => {
    using cache = cacheOf({ prefixes: { quota: 2 } });
    using live = compute(cache, IDS);
    expect(cache.stats().prefixes).toMatchObject({ blocks: 2, refusedBlocks: 1 });
    expect(live.length).toBe(7);
    cache.check();
  });
  test("a block in use stays, though it is older than one that nobody uses", () => {
    using cache = cacheOf({ prefixes: { quota: 2 } });
    using _ = compute(cache, [1, 2]);
    compute(cache, [3, 4]).release();
    compute(cache, [5, 6]).release();
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [5, 6, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([2, 0, 2]);
    cache.check();
  });
  test("a quota of 0 publishes nothing", () => {
    using cache = cacheOf({ prefixes: { quota: 0 } });
    compute(cache, IDS);
    expect(cache.stats().prefixes!.blocks).toBe(0);
  });
  test("a block of another's that the sequence stands on is not what makes room", () => {
    using cache = cacheOf({ prefixes: { quota: 1 } });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, [1, 2]],
      [b, [1, 2]],
    ]);
    a.release(); // the published page is idle, and b goes on behind it
    append(cache, [[b, [3, 4]]]);
    expect(found(cache, [1, 2, 3, 4, 5])).toBe(2);
    cache.check();
  });
  test.each([-1, 0.5, NaN, "1"])("a quota of %p is refused", (quota) => {
    expect(() => cacheOf({ prefixes: { quota: quota as number } })).toThrow(ArgumentError);
    expect(() => cacheOf({ prefixes: { quotas: { a: quota as number } } })).toThrow(ArgumentError);
  });
});

describe("retention", () => {
  test("a higher priority stays longer, until it expires on the cache's clock", () => {
    let now = 0;
    using cache = cacheOf({ maxPages: 4, now: () => now });
    compute(cache, [1, 2], { priority: 80, expires: 100 }).release();
    compute(cache, [3, 4]).release();
    compute(cache, [5, 6]).release();
    const pool = poolOf(cache);
    expect(Array.from(pool.peek(9))).toEqual([4, 2, 3, 1]);
    compute(cache, [7, 7, 8, 8]).release();
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [5, 6, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([2, 0, 2]);
    expect(Array.from(pool.peek(9))).toEqual([2, 4, 3, 1]); // 8, 7, then those found again
    found(cache, [5, 6, 0]);
    now = 100;
    using _ = compute(cache, [9, 9, 8, 8, 7, 7]);
    expect(
      [
        [1, 2, 0],
        [5, 6, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([0, 2]);
    cache.check();
  });
  test("a priority that has expired counts no more when a sequence comes back", async () => {
    let now = 0;
    using cache = cacheOf({ maxPages: 3, now: () => now });
    const [tier, sequence] = [new HostTier({ maxBytes: 2 ** 20 }), compute(cache, [60, 61])];
    await cache.swapOut(sequence, tier);
    compute(cache, [1, 2], { priority: 90, expires: 100 }).release();
    compute(cache, [3, 4]).release();
    compute(cache, [5, 6]).release(); // takes the page of [60, 61]
    now = 100;
    await cache.swapIn(sequence);
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [5, 6, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([0, 2, 2]);
    cache.check();
  });
  test("a priority that has expired counts no more when prefixes are loaded", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using other = cacheOf();
    compute(other, [60, 61]).release();
    await other.savePrefixes(path);
    let now = 0;
    using cache = cacheOf({ prefixes: { quota: 2 }, now: () => now });
    compute(cache, [1, 2], { priority: 90, expires: 100 }).release();
    compute(cache, [3, 4], { priority: 70 }).release();
    expect(await cache.loadPrefixes(path)).toMatchObject({ loaded: 0, skipped: 1 });
    now = 100;
    expect(await cache.loadPrefixes(path)).toMatchObject({ loaded: 1, skipped: 0 });
    expect(
      [
        [1, 2, 0],
        [3, 4, 0],
        [60, 61, 0],
      ].map((ids) => found(cache, ids)),
    ).toEqual([0, 2, 2]);
    cache.check();
  });
  test("a head of low priority goes and takes what follows it along", () => {
    using cache = cacheOf({ maxPages: 4 });
    compute(cache, [1, 2], { priority: 10 }).release();
    using match = cache.match([1, 2, 3]);
    const sequence = cache.open({ match, priority: 90 });
    append(cache, [[sequence, [3, 4]]]);
    sequence.release();
    const taken = compute(cache, idsFrom(60, 6)); // pages 3, 4 and then 1
    expect(Array.from(taken.pages)).toEqual([3, 4, 1]);
    expect(cache.stats()).toMatchObject({ cachedPages: 0, freePages: 1, prefixes: { blocks: 3 } });
    cache.check();
  });
});
