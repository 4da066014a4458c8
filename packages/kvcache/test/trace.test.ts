/** A trace replays to the same pages, and a replay that goes another way says where. */
import { FormatError, HeedError, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import {
  type Fence,
  HostTier,
  type KvCache,
  type PrefixMatch,
  replayTrace,
  type Sequence,
  StateError,
  type TraceLine,
} from "../src/index.ts";
import { temporaryFolder } from "./file-faults.ts";
import { append, idsFrom, poisonedGroups, usage } from "./fixtures.ts";

const rows = { numKvHeads: 2, headDim: 3, valueHeadDim: 2 };
let clock = 0;
/** A new cache that keeps prefixes by a clock of its own; forgets the lines of the last one. */
function traced(lines: string[], dtype: "float32" | "int4" = "float32"): KvCache {
  const cache = poisonedGroups({
    groups: [
      { ...rows, layers: [0, 2], pageSize: 4, maxPages: 14, dtype },
      { ...rows, layers: [1], pageSize: 2, maxPages: 18, window: 5, sinks: 3, layout: "token-major", dtype },
    ],
    draftMargin: 1,
    prefixes: { quotas: { b: 3 } },
    now: () => clock,
  });
  lines.length = 0;
  clock = 0;
  return cache;
}
/** Lets others run, in an order that is always the same. */
async function turns(): Promise<void> {
  for (let i = 0; i < 5; i++) await undefined;
}
/** A tier that lets others run before each transfer is over. */
class SlowTier extends HostTier {
  override async put(...args: Parameters<HostTier["put"]>): Promise<void> {
    await turns();
    await super.put(...args);
  }
  override async take(...args: Parameters<HostTier["take"]>): Promise<void> {
    await turns();
    await super.take(...args);
  }
}
const PLAN = fc.array(fc.tuple(fc.nat({ max: 20 }), fc.nat({ max: 30 }), fc.nat({ max: 30 })), {
  maxLength: 60,
  size: "max",
});
const NAMES = ["", "b", "c"] as const;
type Plan = readonly (readonly [number, number, number])[];

/** Does what the plan's numbers say, as far as it can be done. Errors that the cache may throw are part of the plan. */
async function drive(cache: KvCache, plan: Plan, file: string): Promise<void> {
  const sequences: Sequence[] = [];
  const fences: Fence[] = [];
  const matches: PrefixMatch[] = [];
  const transfers: Promise<unknown>[] = [];
  const tier = new SlowTier({ maxBytes: 2 ** 20 });
  const start = (work: Promise<unknown>): void => void transfers.push(work.catch(expected));
  const expected = (error: unknown): void => {
    if (!(error instanceof HeedError)) throw error;
  };
  for (const [kind, a, b] of plan) {
    const s = sequences[a % Math.max(1, sequences.length)];
    await undefined;
    try {
      if (kind === 0 || s === undefined) sequences.push(cache.open());
      else if (kind <= 4) append(cache, [[s, idsFrom(s.length, b % 10)]]);
      else if (kind === 5) cache.reserve([{ sequence: s, tokens: b }]).cancel();
      else if (kind === 6) sequences.push(...s.fork(1 + (b % 2)));
      else if (kind === 7) s.truncate(b % (s.length + 1));
      else if (kind === 8) s.release();
      else if (kind === 9) fences.push(cache.fence([s], { done: () => b % 3 === 0 }));
      else if (kind === 10) fences.pop()?.[Symbol.dispose]();
      else if (kind === 11) start(cache.swapOut(s, tier));
      else if (kind === 12) start(cache.swapIn(s));
      else if (kind === 13) await Promise.all(transfers);
      else if (kind === 14)
        sequences.push(cache.open({ namespace: NAMES[a % 3], priority: b * 3, expires: clock + a }));
      else if (kind === 15)
        matches.push(cache.match(idsFrom(0, b), { namespace: NAMES[a % 3], partial: b % 2 === 0 }));
      else if (kind === 16) sequences.push(cache.open({ match: matches.pop(), priority: b }));
      else if (kind === 17) matches.pop()?.[Symbol.dispose]();
      else if (kind === 18) clock += b;
      else if (kind === 19) start(cache.savePrefixes(file));
      else if (b % 3 > 0) start(cache.loadPrefixes(file));
      else cache.invalidate(b % 2 === 0 ? { adapter: "none" } : {});
    } catch (error) {
      expected(error);
    }
  }
  await Promise.all(transfers);
}
const replay = (lines: readonly string[]): ReturnType<typeof replayTrace> =>
  replayTrace(lines, { engine: "portable" });

describe("a trace", () => {
  test("of any commands, transfers under way included, replays to the same pages", async () => {
    await fc.assert(
      fc.asyncProperty(PLAN, fc.constantFrom("float32", "int4"), async (plan, dtype) => {
        using folder = temporaryFolder();
        const lines: string[] = [];
        using cache = traced(lines, dtype);
        using recording = cache.record((line) => lines.push(line));
        await drive(cache, plan, join(folder.path, "p"));
        cache.check();
        const now = usage(cache) as { totalPages: number; freePages: number; usedPages: number };
        let seen: unknown;
        const report = replayTrace(lines, {
          engine: "portable",
          onCommand: (again) => {
            again.check();
            const { freePages, usedPages, inFlightPages, freeResidualPages } = again.stats();
            seen = { freePages, usedPages, inFlightPages, freeResidualPages };
          },
        });
        expect(report).toMatchObject({ commands: lines.length - 1, difference: undefined });
        if (lines.length > 1) expect(now).toMatchObject(seen as object);
        expect(recording.error).toBeUndefined();
      }),
      { numRuns: 40 },
    );
  }, 60_000);
  test("has a line for every kind of command, and a header that a replay can start from", async () => {
    const lines: string[] = [];
    using cache = traced(lines);
    cache.record((line) => lines.push(line));
    const a = cache.open();
    append(cache, [[a, idsFrom(0, 9)]]);
    const [b] = a.fork() as [Sequence];
    cache.fence([b])[Symbol.dispose]();
    cache.reserve([{ sequence: b, tokens: 1 }]).cancel();
    b.truncate(8);
    const tier = new HostTier({ maxBytes: 2 ** 20 });
    await cache.swapOut(b, tier);
    const stop = { signal: AbortSignal.abort(new Error("no")) };
    await cache.swapIn(b, stop).catch(() => undefined);
    await cache.swapIn(b);
    a.release();
    cache.match([0, 1, 2, 3, 4])[Symbol.dispose]();
    using folder = temporaryFolder();
    const file = join(folder.path, "p");
    await cache.savePrefixes(file);
    cache.invalidate();
    await cache.loadPrefixes(file);
    const c = cache.open({ expires: 5, match: cache.match([0, 1, 2, 3, 4]) });
    append(cache, [[c, [9, 9, 9, 9]]]);
    clock = 6;
    append(cache, [[b, [7]]]);
    for (const s of [b, c]) s.release();
    cache.reset();
    expect(JSON.parse(lines[0]!)).toEqual({
      trace: "heed-kvcache",
      version: 1,
      groups: [
        { pageSize: 4, window: null, sinks: 0, maxPages: 14 },
        { pageSize: 2, window: 5, sinks: 3, maxPages: 18 },
      ],
      draftMargin: 1,
      prefixes: { quota: null, quotas: { b: 3 } },
    });
    const ops = lines.slice(1).map((line) => (JSON.parse(line) as TraceLine).op);
    expect(new Set(ops)).toEqual(
      new Set([
        "open",
        "match",
        "unmatch",
        "invalidate",
        "clock",
        "pin",
        "insert",
        "reserve",
        "commit",
        "fork",
        "fence",
        "lift",
        "cancel",
        "truncate",
        "drop",
        "take",
        "empty",
        "release",
        "reset",
      ]),
    );
    expect(JSON.parse(lines[2]!)).toEqual({
      op: "reserve",
      step: 0,
      rows: [[0, 9]],
      pages: [
        [
          [1, 2, 3],
          [1, 2, 3, 4, 5],
        ],
      ],
      free: [11, 13],
      cached: [0, 0],
    });
    expect(replay(lines).difference).toBeUndefined();
  });
  test("of the same calls is the same, line by line", async () => {
    const plans = fc.sample(PLAN, { numRuns: 20, seed: 7 }).flat();
    const plan = plans.filter(([kind]) => kind < 19); // files take the system's time
    const run = async (): Promise<string[]> => {
      using folder = temporaryFolder();
      const lines: string[] = [];
      using cache = traced(lines);
      using _ = cache.record((line) => lines.push(line));
      await drive(cache, plan, join(folder.path, "p"));
      return lines;
    };
    const first = await run();
    expect(first.length).toBeGreaterThan(100);
    expect(await run()).toEqual(first);
  });
  test("starts with a new cache, one at a time", () => {
    using cache = traced([]);
    const recording = cache.record(() => undefined);
    expect(() => cache.record(() => undefined)).toThrow(StateError);
    recording[Symbol.dispose]();
    using _ = cache.record(() => undefined);
    recording[Symbol.dispose](); // ends its own only
    expect(() => cache.record(() => undefined)).toThrow(StateError);
    using used = traced([]);
    append(used, [[used.open(), [1]]]);
    expect(() => used.record(() => undefined)).toThrow("starts with a new cache");
  });
  test("whose sink throws ends, and the command is done all the same", () => {
    const lines: string[] = [];
    using cache = traced(lines);
    const recording = cache.record((line) => {
      if (lines.push(line) === 3) throw new Error("full");
    });
    const sequence = cache.open();
    append(cache, [[sequence, [1, 2, 3]]]);
    expect([sequence.length, lines.length]).toEqual([3, 3]);
    expect(recording.error).toMatchObject({ message: "full" });
    cache.check();
    using other = traced([]);
    expect(() =>
      other.record(() => {
        throw new Error("full");
      }),
    ).toThrow("full");
    using _ = other.record(() => undefined);
  });
});
describe("a replay", () => {
  async function trace(): Promise<string[]> {
    using folder = temporaryFolder();
    const lines: string[] = [];
    using cache = traced(lines);
    using _ = cache.record((line) => lines.push(line));
    await drive(cache, fc.sample(PLAN, { numRuns: 8, seed: 3 }).flat(), join(folder.path, "p"));
    return lines;
  }
  test("names the first line whose pages or counts are others", async () => {
    const lines = await trace();
    const index = lines.findLastIndex((line) => line.startsWith('{"op":"reserve"'));
    const altered = (change: (line: TraceLine) => unknown): string[] =>
      lines.with(index, JSON.stringify(change(JSON.parse(lines[index]!) as TraceLine)));
    expect(replay(altered((l) => ({ ...l, pages: [] }))).difference).toMatchObject({
      line: index + 1,
      op: "reserve",
      field: "pages",
      expected: [],
    });
    expect(replay(altered((l) => ({ ...l, free: [0, 0] }))).difference).toMatchObject({
      line: index + 1,
      field: "free",
    });
    expect(replay(altered((l) => ({ ...l, cached: [9, 9] }))).difference).toMatchObject({
      line: index + 1,
      field: "cached",
    });
    const failed = replay(altered((l) => ({ ...l, rows: [[0, 5000]] }))).difference;
    expect([failed?.line, failed?.field]).toEqual([index + 1, "error"]);
    expect(failed?.found).toBeInstanceOf(HeedError);
    const fewer = [lines[0]!.replace('"maxPages":14', '"maxPages":13'), ...lines.slice(1)];
    expect(replay(fewer).difference?.line).toBe(2);
  });
  test("of lines that are damaged, left out or made up ends in a difference or a typed error", async () => {
    const lines = await trace();
    const at = fc.nat({ max: lines.length - 1 });
    const text = fc.oneof(fc.string(), fc.json(), fc.constantFrom("{}", "null", '{"op":"toString"}'));
    await fc.assert(
      fc.property(
        at,
        fc.nat(),
        fc.oneof(fc.constantFrom("cut", "digit", "leave out"), text),
        (n, place, how) => {
          const line = lines[n]!;
          const p = place % line.length;
          const made =
            how === "cut"
              ? line.slice(0, p)
              : how === "digit"
                ? `${line.slice(0, p)}7${line.slice(p + 1)}`
                : how === "leave out"
                  ? ""
                  : how;
          try {
            replay(lines.with(n, made));
          } catch (error) {
            expect(error).toBeInstanceOf(HeedError);
          }
        },
      ),
      { numRuns: 80 },
    );
  }, 60_000);
  test("of what is no trace is a typed error that names the line", () => {
    const header =
      '{"trace":"heed-kvcache","version":1,"groups":[{"pageSize":4,"window":null,"sinks":0,"maxPages":9}],"draftMargin":0,"prefixes":null}';
    const end = ',"free":[9],"cached":[0]}';
    expect(() => replay([])).toThrow(FormatError);
    expect(() => replay([header.replace(":1,", ":2,")])).toThrow("version 1");
    expect(() => replay([header, "", "{"])).toThrow("line 3 of the trace");
    expect(() => replay([header, `{"op":"release","sequence":4${end}`])).toThrow(
      "sequence 4, which it has not made",
    );
    expect(() => replay([header, `{"op":"open","sequence":-1${end}`])).toThrow('wrong "sequence"');
    const open = `{"op":"open","sequence":0,"match":null,"namespace":"","adapter":null,"pages":[[[]]]${end}`;
    const great = `{"op":"take","sequence":0,"length":9007199254740991,"from":[0],"ids":null,"pages":[[[1]]]${end}`;
    expect(() => replay([header, open, great])).toThrow("does not fit its groups");
    expect(() => replay([header.replace("9}", "9007199254740991}")])).toThrow(HeedError);
    expect(OutOfMemoryError.prototype).toBeInstanceOf(HeedError);
  });
});
