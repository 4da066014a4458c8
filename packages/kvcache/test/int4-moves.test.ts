/** Int4 pages that are found, moved, stored and traced; and attention over them. */
import {
  getEngine,
  memoryUsage,
  OutOfMemoryError,
  pagedAttention,
  recordTape,
  scope,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose, attentionOracle, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  HostTier,
  InvariantError,
  KvCache,
  type KvCacheOptions,
  PageFileError,
  replayTrace,
  type Sequence,
  StateError,
} from "../src/index.ts";
import { cacheState } from "../src/cache.ts";
import { writePageFile } from "../src/page-file-write.ts";
import { openPageFile } from "../src/page-file.ts";
import { stateOf } from "../src/sequence.ts";
import { expectedPages } from "../src/snapshot.ts";
import { engines } from "./engines.ts";
import { faulty, floats, idsFrom, usage } from "./fixtures.ts";
import {
  appendTokens,
  D,
  DV,
  expectedRows,
  HKV,
  int4Cache,
  sealedTokens,
  storedRows,
  writeTokens,
} from "./int4-fixtures.ts";

const PARTS = ["k", "v"] as const;
/** Every row as it stands, and which are encoded. */
const all = (cache: KvCache, sequence: Sequence) =>
  [0, 1].flatMap((layer) => PARTS.map((part) => storedRows(cache, sequence, layer, part)));
/** Every row is what it must be when the first `sealed` tokens are encoded. */
function expectAll(cache: KvCache, sequence: Sequence, ids: readonly number[], sealed: number): void {
  cache.check();
  for (const layer of [0, 1])
    for (const part of PARTS) {
      const { rows, sealed: flags } = storedRows(cache, sequence, layer, part);
      expect(flags.filter(Boolean).length).toBe(sealed);
      expect(rows).toEqual(expectedRows(cache, ids, sealed, layer, part));
    }
}
async function inFolder(act: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "heed-"));
  try {
    await act(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

describe.each(engines)("int4 pages on %s", (engine) => {
  const cacheOf = (o: Partial<KvCacheOptions> = {}): KvCache => int4Cache({ engine, ...o });

  test("what is encoded and what is not comes back from a tier as it was", async () => {
    using cache = cacheOf({ draftMargin: 5 });
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 19)]]);
    const before = all(cache, sequence);
    const tier = new HostTier({ maxBytes: 1 << 20 });
    await cache.swapOut(sequence, tier);
    cache.check();
    expect(cache.stats().freeResidualPages).toBe(16);
    using other = cache.open();
    appendTokens(cache, [[other, idsFrom(300, 21)]]);
    await cache.swapIn(sequence);
    expect(all(cache, sequence)).toEqual(before);
    appendTokens(cache, [[sequence, idsFrom(19, 3)]]);
    expectAll(cache, sequence, idsFrom(0, 22), 16);
    expectAll(cache, other, idsFrom(300, 21), 16);
  });
  test("a sequence that lacks residual pages stays in its tier", async () => {
    using cache = cacheOf({ maxResidualPages: 4, draftMargin: 4 });
    using sequence = cache.open();
    for (const n of [0, 7, 14]) appendTokens(cache, [[sequence, idsFrom(n, 7)]]);
    const waiting = 4 - cache.stats().freeResidualPages;
    expect(waiting).toBe(2);
    await cache.swapOut(sequence, new HostTier({ maxBytes: 1 << 20 }));
    const [a, b, c] = [cache.open(), cache.open(), cache.open()];
    appendTokens(
      cache,
      [a, b, c].map((s, i) => [s, [400 + i]] as const),
    );
    const before = usage(cache);
    await expect(cache.swapIn(sequence)).rejects.toThrow(OutOfMemoryError);
    expect(usage(cache)).toEqual(before);
    a.release();
    await cache.swapIn(sequence);
    expectAll(cache, sequence, idsFrom(0, 21), 16);
  });
  test("a file holds what a sequence had when it was saved, whatever is encoded meanwhile", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "saved");
      using cache = cacheOf({ draftMargin: 2 });
      const sequence = cache.open();
      appendTokens(cache, [[sequence, idsFrom(0, 13)]]);
      const before = all(cache, sequence);
      const saving = cache.save(sequence, path);
      appendTokens(cache, [[sequence, idsFrom(13, 6)]]); // 8 .. 11 are encoded
      expect(sealedTokens(cache, sequence)).toBe(16);
      sequence.release();
      using other = cache.open();
      appendTokens(cache, [[other, idsFrom(700, 16)]]);
      await saving;
      using again = await cache.load(path);
      expect(all(cache, again)).toEqual(before);
      using elsewhere = cacheOf({ maxPages: 9 });
      using copy = await elsewhere.load(path);
      expect(all(elsewhere, copy)).toEqual(before);
      appendTokens(elsewhere, [[copy, [13]]]); // without a margin, all full pages are due
      expectAll(elsewhere, copy, idsFrom(0, 14), 12);
    });
  });
  test("files of other residual dtypes, or that lie about what is encoded, are refused", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "saved");
      using cache = cacheOf({ residualDtype: "bfloat16" });
      using sequence = cache.open();
      appendTokens(cache, [[sequence, idsFrom(0, 13)]]);
      await cache.save(sequence, path);
      using other = cacheOf({ residualDtype: "float16" }); // as many bytes
      await expect(other.load(path)).rejects.toThrow(PageFileError);
      using floats = cacheOf({ dtype: "float32" });
      await expect(floats.load(path)).rejects.toThrow("layout");
      const bytes = await readFile(path);
      await writeFile(path, bytes.subarray(0, bytes.length - 5));
      const before = usage(cache);
      await expect(cache.load(path)).rejects.toThrow(PageFileError);
      expect(usage(cache)).toEqual(before);
    });
  });
  test("a header that tells of other encoded pages than there are is refused", async () => {
    await inFolder(async (folder) => {
      const [good, forged] = [join(folder, "good"), join(folder, "forged")];
      using cache = cacheOf();
      using sequence = cache.open();
      appendTokens(cache, [[sequence, idsFrom(0, 13)]]);
      await cache.save(sequence, good);
      await using file = await openPageFile(good, expectedPages(cacheState(cache)));
      const pages: Uint8Array[] = [];
      for (let n = 0; n < file.pages; n++) pages.push((await file.read(n)).slice());
      const { header } = file;
      const write = (sealed: unknown): Promise<void> => {
        const content = { ...(header.content as object), sealed };
        return writePageFile(forged, { header: { ...header, content }, page: (n) => pages[n]! });
      };
      const before = usage(cache);
      for (const sealed of [[2], [4], [-1], [0.5], ["3"], [3, 3], [], 3, null, undefined]) {
        await write(sealed);
        await expect(cache.load(forged)).rejects.toThrow("does not describe a sequence");
        expect(usage(cache)).toEqual(before);
      }
      await write([3]);
      using again = await cache.load(forged);
      expectAll(cache, again, idsFrom(0, 13), 12);
    });
  });
  test("blocks are published once they are encoded, and found whole", () => {
    using cache = cacheOf({ prefixes: true, draftMargin: 2 });
    const sequence = cache.open();
    const ids = idsFrom(0, 9);
    appendTokens(cache, [[sequence, ids]]);
    expect(cache.prefixes().length).toBe(1); // 4 .. 7 are within the margin
    appendTokens(cache, [[sequence, [9]]]);
    expect(cache.prefixes().length).toBe(2);
    const rows = all(cache, sequence).map((part) => part.rows.slice(0, 8));
    sequence.release();
    cache.check();
    expect(cache.stats()).toMatchObject({ cachedPages: 2, freeResidualPages: 16 });
    using other = cache.open();
    appendTokens(cache, [[other, idsFrom(500, 40)]]); // on other pages
    for (const partial of [false, true]) {
      using hit = cache.open({ match: cache.match([...idsFrom(0, 7), 77, 78], { partial }) });
      expect(hit.length).toBe(4); // 4 .. 6 agree, but lie in one page with 7
      using longer = cache.open({ match: cache.match(idsFrom(0, 12), { partial }) });
      expect(longer.length).toBe(8);
      expect(all(cache, longer).map((part) => part.rows)).toEqual(rows);
      appendTokens(cache, [[longer, [8, 9]]]);
      expectAll(cache, longer, idsFrom(0, 10), 8);
      longer.truncate(8);
      expect(() => longer.truncate(7)).toThrow(StateError);
      longer.truncate(4);
      cache.check();
    }
  });
  test("an engine that fails to copy a tail evicts nothing, also where no page is free", () => {
    const { engine: weak, arm } = faulty(engine);
    using cache = int4Cache({ engine: weak, prefixes: true, maxPages: 5 });
    const first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 12)]]);
    first.release();
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(50, 6)]]);
    using fork = sequence.fork()[0]!;
    const seen = (): unknown => [cache.prefixes(), usage(cache), fork.pages];
    const before = seen();
    let failures = 0;
    for (let n = 1; ; n++) {
      arm(n);
      try {
        cache.reserve([{ sequence: fork, tokens: 1 }]).cancel();
      } catch {
        failures++;
      }
      arm(Infinity);
      cache.check();
      if (failures < n) break;
      expect(seen()).toEqual(before);
      expectAll(cache, fork, idsFrom(50, 6), 4);
    }
    expect(failures).toBeGreaterThanOrEqual(2 * 2); // keys and values of two layers
    expect(cache.prefixes().length).toBe(3); // the page was taken for the step that was cancelled
    expectAll(cache, sequence, idsFrom(50, 6), 4);
  });
  test("a block that has lost pages behind a window gets those of the next sequence, once they are encoded", () => {
    const rows = { numKvHeads: 1, headDim: 2, dtype: "int4", pageSize: 4 } as const;
    using cache = new KvCache({
      groups: [
        { ...rows, layers: [0], maxPages: 12 },
        { ...rows, layers: [1], maxPages: 6, window: 5 },
      ],
      draftMargin: 2,
      prefixes: true,
      engine,
    });
    const ids = idsFrom(0, 10);
    const first = cache.open();
    appendTokens(cache, [[first, ids]]);
    first.release();
    const other = cache.open();
    for (let n = 0; n < 3; n++) appendTokens(cache, [[other, idsFrom(100 + 8 * n, 8)]]); // evicts what first had in group 1
    other.release();
    const found = (): number => {
      using match = cache.match(ids.concat(10));
      return match.length;
    };
    expect(found()).toBe(0);
    const second = cache.open();
    for (const id of ids) {
      appendTokens(cache, [[second, [id]]]);
      cache.check();
      expect(found()).toBe(Math.floor(Math.max(0, id + 1 - 2) / 4) * 4);
    }
  });
  test("an index that is saved comes back with the same codes", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "index");
      using cache = cacheOf({ prefixes: true });
      using sequence = cache.open();
      appendTokens(cache, [[sequence, idsFrom(0, 10)]]);
      expect(await cache.savePrefixes(path)).toBe(2);
      using elsewhere = cacheOf({ prefixes: true });
      expect(await elsewhere.loadPrefixes(path)).toMatchObject({ loaded: 2 });
      using hit = elsewhere.open({ match: elsewhere.match(idsFrom(0, 10)) });
      expectAll(elsewhere, hit, idsFrom(0, 8), 8);
    });
  });
  test("decoding attends to exact new rows and to what encoded rows stand for, within the documented bound", () => {
    using cache = cacheOf({ pageSize: 32 });
    using sequence = cache.open();
    const length = 75;
    appendTokens(cache, [[sequence, idsFrom(0, length - 1)]]);
    using step = cache.reserve([{ sequence, tokens: 1 }]);
    for (const layer of [0, 1]) writeTokens(cache, step, [length - 1], layer);
    const q = createRng(7).normalArray(4 * D, 0, 0.3);
    const dims = { B: 1, S: 1, Sk: length, Hq: 4, Hkv: HKV, D, Dv: DV };
    const exact = Float64Array.from(q, Math.fround);
    const numbers = (sealed: number, part: "k" | "v") =>
      expectedRows(cache, idsFrom(0, length), sealed, 1, part).flat();
    const out = scope(() => {
      const rows = floats(q, [1, 4, D], "float32", getEngine(engine)) as Tensor<"float32">;
      return toFloat64(pagedAttention(rows, step.view(1)));
    });
    const stored = attentionOracle(exact, numbers(64, "k"), numbers(64, "v"), { dims });
    assertClose(out, stored.out, { rel: 1e-5, shape: [4, DV] });
    const [keys, values] = PARTS.map((part) => [numbers(0, part), numbers(64, part)] as const);
    const worst = ([a, b]: readonly [number[], number[]]): number =>
      Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));
    const truth = attentionOracle(exact, keys![0], values![0], { dims });
    for (let h = 0; h < 4; h++) {
      const sum = exact.subarray(h * D, (h + 1) * D).reduce((s, x) => s + Math.abs(x), 0);
      const c = (worst(keys as never) * sum) / Math.sqrt(D);
      const bound = Math.expm1(2 * c) * 12.5 + worst(values as never); // no value is above 12.5
      for (let d = 0; d < DV; d++)
        expect(Math.abs(out[h * DV + d]! - truth.out[h * DV + d]!)).toBeLessThanOrEqual(bound);
    }
    expect(worst(keys as never)).toBeLessThanOrEqual(25 / 30 + 1e-4);
    expect(worst(keys as never)).toBeGreaterThan(0.1);
  });
  test("a tape over a fixed table follows pages from residual ones to encoded ones", () => {
    using cache = cacheOf();
    const [taped, plain] = [cache.open(), cache.open()];
    for (const sequence of [taped, plain]) appendTokens(cache, [[sequence, idsFrom(0, 6)]]);
    using table = cache.fixedTable({ sequences: 1 });
    const q = floats(
      createRng(3).normalArray(4 * D),
      [1, 4, D],
      "float32",
      getEngine(engine),
    ) as Tensor<"float32">;
    const rows = (part: "k" | "v", width: number): Tensor =>
      floats(
        createRng(part === "k" ? 4 : 5).normalArray(HKV * width),
        [1, HKV, width],
        "float32",
        getEngine(engine),
      );
    const [k, v] = [rows("k", D), rows("v", DV)];
    const forward = (step: ReturnType<KvCache["reserve"]>): Tensor[] =>
      [0, 1].map((layer) => {
        step.write(layer, k, v);
        return pagedAttention(q, step.view(layer));
      });
    let recorded: ReturnType<typeof recordTape<Tensor[]>> | undefined;
    for (let n = 0; n < 9; n++) {
      const step = cache.reserve([{ sequence: taped, tokens: 1 }], { table });
      if (recorded === undefined) recorded = recordTape(getEngine(engine), () => forward(step));
      else {
        recorded.tape.replay();
        step.markWritten();
      }
      const outputs = recorded.outputs.map((t) => [...toFloat64(t)]);
      step.commit([n]);
      const other = cache.reserve([{ sequence: plain, tokens: 1 }]);
      const wanted = scope(() => forward(other).map((t) => [...toFloat64(t)]));
      other.commit([n]);
      expect(outputs).toEqual(wanted);
    }
    expect(sealedTokens(cache, taped)).toBe(12);
    recorded!.tape[Symbol.dispose]();
    for (const t of [q, k, v, ...recorded!.outputs]) t[Symbol.dispose]();
  });
  test("nothing is left of a cache that was disposed", () => {
    const before = memoryUsage();
    {
      using cache = cacheOf({ draftMargin: 1 });
      const sequence = cache.open();
      appendTokens(cache, [[sequence, idsFrom(0, 10)]]);
      cache.fence([sequence]);
      cache.reserve([{ sequence, tokens: 4 }]);
    }
    expect(memoryUsage()).toEqual(before);
  });
});
test("a trace of int4 pages replays to the same pages, residual pages and blocks", async () => {
  const lines: string[] = [];
  using cache = int4Cache({ prefixes: true, draftMargin: 2, maxPages: 14, maxResidualPages: 6 });
  using _ = cache.record((line) => lines.push(line));
  const [a, b] = [cache.open(), cache.open()];
  appendTokens(cache, [[a, idsFrom(0, 11)]]);
  const [c] = a.fork();
  appendTokens(cache, [
    [b, idsFrom(0, 5)],
    [c!, [70]],
  ]);
  const fence = cache.fence([a]);
  await cache.swapOut(c!, new HostTier({ maxBytes: 1 << 20 }));
  appendTokens(cache, [[a, idsFrom(11, 6)]]);
  a.truncate(15);
  await cache.swapIn(c!);
  fence[Symbol.dispose]();
  cache.reserve([{ sequence: c!, tokens: 2 }]).cancel();
  b.release();
  using hit = cache.open({ match: cache.match(idsFrom(0, 20)) });
  appendTokens(cache, [[hit, [99]]]);
  c![Symbol.dispose]();
  expect(JSON.parse(lines[0]!).groups[0].residualPages).toBe(6);
  const report = replayTrace(lines, { engine: "portable", onCommand: (replayed) => replayed.check() });
  expect(report.difference).toBeUndefined();
  expect(report.commands).toBe(lines.length - 1);
  const at = lines.findLastIndex((line) => line.includes('"commit"'));
  const other = JSON.parse(lines[at]!) as { residual: number[] };
  other.residual[0]!--;
  const { difference } = replayTrace(lines.with(at, JSON.stringify(other)), { engine: "portable" });
  expect(difference).toMatchObject({ line: at + 1, field: "residual" });
});
test("check() finds what is wrong with residual pages", () => {
  type Books = ReturnType<typeof stateOf>;
  const faults: Record<string, (a: Books) => void> = {
    "an encoded page that is not full": ({ lists, cache }) => {
      for (const at of [1, 2]) cache.groups[0]!.residuals!.release(lists[0]!.ids[at]!);
    },
    "a residual page of an idle page": ({ cache }) => cache.groups[0]!.residuals!.take(20),
    "a residual page of the null page": ({ cache }) => cache.groups[0]!.residuals!.take(0),
    "two pages with one residual page": ({ lists, cache }) => {
      const { names } = cache.groups[0]!.residuals!;
      names[lists[0]!.ids[2]!] = names[lists[0]!.ids[1]!]!;
    },
    "a residual page that does not exist": ({ lists, cache }) =>
      void (cache.groups[0]!.residuals!.names[lists[0]!.ids[2]!] = 25 + 16),
    "a residual page that nobody has": ({ cache }) => void cache.groups[0]!.residuals!.pool.take(),
    "a fence on a residual page that nobody raised": ({ cache, lists }) => {
      const { residuals } = cache.groups[0]!;
      residuals!.pool.fence(residuals!.of(lists[0]!.ids[2]!));
    },
    "a list that takes a page for encoded": ({ lists }) => void (lists[0]!.sealed = 2),
    "an encoded page behind one that is not": ({ lists, cache }) => {
      cache.groups[0]!.residuals!.take(lists[0]!.ids[0]!);
      cache.groups[0]!.residuals!.release(lists[0]!.ids[1]!);
      lists[0]!.sealed = 0;
    },
  };
  for (const [what, spoil] of Object.entries(faults)) {
    const cache = int4Cache({ draftMargin: 3 });
    const sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 10)]]); // pages: encoded, full, partial
    const fence = cache.fence([sequence]);
    cache.check();
    const state = stateOf(sequence);
    spoil(state);
    expect(() => cache.check(), what).toThrow(InvariantError);
    void fence;
  }
});
