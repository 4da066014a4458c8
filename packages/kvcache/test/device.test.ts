/** Caches whose pages the host does not see: the same bytes as on the host, in the pools and on their way out and in. */
import { floorReason } from "@heed/engine-cpu";
import "@heed/engine-cuda";
import { pagedAttention, scope, type Tensor } from "@heed/tensor";
import { assertClose, createRng, floatView } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import {
  FolderTier,
  HostTier,
  KvCache,
  type KvCacheOptions,
  type Sequence,
  type Tier,
} from "../src/index.ts";
import { nameOf } from "../src/residual.ts";
import { temporaryFolder } from "./file-faults.ts";
import { append, booksOf, floats, idsFrom, writeLayer } from "./fixtures.ts";

const DEVICE = "cuda-emulated";
const OPTIONS: KvCacheOptions = {
  layers: 2,
  numKvHeads: 2,
  headDim: 3,
  valueHeadDim: 2,
  pageSize: 4,
  maxPages: 12,
};
const KINDS: Readonly<Record<string, Partial<KvCacheOptions>>> = {
  float32: {},
  "bfloat16, token-major": { dtype: "bfloat16", layout: "token-major" },
  "values in keys": { valuesInKeys: true },
  int4: { dtype: "int4" },
};
/** The bytes of every page that a sequence lists, rows without a token as zeros. */
async function bytesOf(cache: KvCache, sequence: Sequence): Promise<number[][]> {
  const group = booksOf(cache).groups[0]!;
  const { storage, layout } = group;
  const pages = [...sequence.pagesOf(0)].map((page) => nameOf(group, page));
  return Promise.all(
    pages.map(async (page, i) => [
      ...(await storage.fetchPage(page, Math.min(layout.pageSize, sequence.length - i * layout.pageSize))),
    ]),
  );
}
const onBoth = (options: Partial<KvCacheOptions> = {}): KvCache[] =>
  ["portable", DEVICE].map((engine) => new KvCache({ ...OPTIONS, ...options, engine }));

describe.skipIf(!floorReason.startsWith("native"))("a cache on a device", () => {
  test.each(Object.keys(KINDS))(
    "holds what one on the host holds, forks and cuts included: %s",
    async (kind) => {
      const seen = await Promise.all(
        onBoth(KINDS[kind]).map(async (cache) => {
          const sequence = cache.open();
          append(cache, [[sequence, idsFrom(0, 6)]]);
          const [fork] = sequence.fork() as [Sequence];
          append(cache, [
            [sequence, idsFrom(6, 5)],
            [fork, idsFrom(50, 3)],
          ]);
          sequence.truncate(9);
          append(cache, [[sequence, [70]]]);
          cache.check();
          const bytes = [await bytesOf(cache, sequence), await bytesOf(cache, fork)];
          cache[Symbol.dispose]();
          return bytes;
        }),
      );
      expect(seen[1]).toEqual(seen[0]);
      expect(seen[0]!.flat(2).some((byte) => byte !== 0)).toBe(true);
    },
  );
  for (const [kind, format] of [
    ["host", "float32"],
    ["folder", "float32"],
    ["host", "int4"],
    ["folder", "int4"],
  ] as const)
    test(`swaps sequences out and in (${kind}, ${format})`, async () => {
      using folder = temporaryFolder();
      const tier: Tier =
        kind === "host"
          ? new HostTier({ maxBytes: 2 ** 20 })
          : await FolderTier.open(join(folder.path, "t"), { maxBytes: 2 ** 20 });
      using cache = new KvCache({ ...OPTIONS, ...KINDS[format], engine: DEVICE });
      const sequence = cache.open();
      append(cache, [[sequence, idsFrom(3, 10)]]);
      const before = await bytesOf(cache, sequence);
      await cache.swapOut(sequence, tier);
      expect(cache.stats().usedPages).toBe(0);
      const other = cache.open();
      append(cache, [[other, idsFrom(100, 11)]]);
      await cache.swapIn(sequence);
      cache.check();
      expect(await bytesOf(cache, sequence)).toEqual(before);
    });
  test("two sequences may leave for one tier at once", async () => {
    using cache = new KvCache({ ...OPTIONS, engine: DEVICE });
    const tier = new HostTier({ maxBytes: 2 ** 20 });
    const sequences = [0, 1].map((i) => {
      const sequence = cache.open();
      append(cache, [[sequence, idsFrom(20 * i, 9)]]);
      return sequence;
    });
    const before = await Promise.all(sequences.map((s) => bytesOf(cache, s)));
    await Promise.all(sequences.map((s) => cache.swapOut(s, tier)));
    expect(tier.stats().entries).toBe(2);
    await Promise.all(sequences.map((s) => cache.swapIn(s)));
    expect(await Promise.all(sequences.map((s) => bytesOf(cache, s)))).toEqual(before);
  });
  test("a tier that fills up while pages arrive refuses, and keeps its books", async () => {
    using cache = new KvCache({ ...OPTIONS, engine: DEVICE });
    const sequences = [0, 1].map((i) => {
      const sequence = cache.open();
      append(cache, [[sequence, idsFrom(20 * i, 9)]]);
      return sequence;
    });
    const tier = new HostTier({ maxBytes: booksOf(cache).groups[0]!.storage.pageBytes * 4 });
    const results = await Promise.allSettled(sequences.map((s) => cache.swapOut(s, tier)));
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
    expect(tier.stats().entries).toBe(1);
    expect(sequences[1]!.swapped).toBe(false);
    cache.check();
  });
  const fileTest =
    "its sequences and prefixes go to files that a cache on the host reads, and the other way: %s";
  test.each(["float32", "int4"])(fileTest, async (format) => {
    using folder = temporaryFolder();
    const options = { prefixes: {}, ...KINDS[format] };
    for (const [from, to] of [onBoth(options), onBoth(options).reverse()] as [KvCache, KvCache][]) {
      const sequence = from.open();
      append(from, [[sequence, idsFrom(5, 11)]]);
      await from.save(sequence, join(folder.path, "s"));
      expect(await from.savePrefixes(join(folder.path, "p"))).toBe(2);
      const loaded = await to.load(join(folder.path, "s"));
      expect(await bytesOf(to, loaded)).toEqual(await bytesOf(from, sequence));
      loaded.release();
      await to.loadPrefixes(join(folder.path, "p"));
      const found = to.open({ match: to.match(idsFrom(5, 11)) });
      expect(found.length).toBe(8);
      expect(await bytesOf(to, found)).toEqual((await bytesOf(from, sequence)).slice(0, 2));
      for (const cache of [from, to]) {
        cache.check();
        cache[Symbol.dispose]();
      }
    }
  });
  test("attention over a step's pages is that over the host's", async () => {
    const outputs = await Promise.all(
      onBoth().map(async (cache) => {
        const [a, b] = [cache.open(), cache.open()];
        append(cache, [[a, idsFrom(0, 7)]]);
        using step = cache.reserve([
          { sequence: a, tokens: 1 },
          { sequence: b, tokens: 2 },
        ]);
        for (const layer of [0, 1]) writeLayer(cache, step, [7, 30, 31], layer);
        const q = createRng(1)
          .normalArray(3 * 4 * 3)
          .map((x) => x / 50);
        using out = scope(() =>
          pagedAttention(
            floats(q, [3, 4, 3], "float32", cache.engine) as Tensor<"float32">,
            floatView(step.view(1)),
          ),
        );
        const values = await out.read();
        step.commit();
        cache[Symbol.dispose]();
        return values;
      }),
    );
    assertClose(outputs[1]!, outputs[0]!, { rel: 1e-5, abs: 1e-4, shape: [3, 4, 2] });
  });
});
