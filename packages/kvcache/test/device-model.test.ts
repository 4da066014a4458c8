/** Any sequence of commands on a device and on the host side by side: the same outcomes, the same books, the same bytes in every page. */
import { floorReason } from "@heed/engine-cpu";
import "@heed/engine-cuda";
import { HeedError, memoryUsage } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import { type Fence, FolderTier, HostTier, KvCache, type Sequence, type Tier } from "../src/index.ts";
import { cacheState } from "../src/cache.ts";
import { nameOf } from "../src/residual.ts";
import { temporaryFolder } from "./file-faults.ts";
import { usage } from "./fixtures.ts";
import { SETUPS } from "./stateful/commands.ts";
import { chain, writeRows } from "./stateful/rows.ts";

const OPS = [
  "open",
  "append",
  "append",
  "append",
  "append",
  "append",
  "batch",
  "batch",
  "match",
  "partial",
  "fork",
  "fork",
  "truncate",
  "cancel",
  "release",
  "swapOut",
  "swapOut",
  "swapIn",
  "swapIn",
  "fence",
  "lift",
  "save",
  "load",
  "prefixes",
] as const;
interface Command {
  readonly op: (typeof OPS)[number];
  readonly who: number;
  readonly ids: readonly number[];
}
const commands: fc.Arbitrary<Command[]> = fc.array(
  fc.record({
    op: fc.constantFrom(...OPS),
    who: fc.nat({ max: 11 }),
    ids: fc.array(fc.nat({ max: 1 }), { minLength: 1, maxLength: 9, size: "max" }),
  }),
  { minLength: 4, maxLength: 30, size: "max" },
);
/** A cache with everything that commands refer to. */
class Twin {
  readonly cache: KvCache;
  readonly host = new HostTier({ maxBytes: 1600 });
  readonly folder: string;
  readonly tier: Tier;
  sequences: Sequence[] = [];
  fences: Fence[] = [];
  past: readonly number[] = [];
  constructor(engine: string, setup: number, folder: string, tier: Tier) {
    this.cache = new KvCache({ ...SETUPS[setup]!, engine, prefixes: { hashBits: 6 } });
    this.folder = folder;
    this.tier = tier;
  }
  /** Does a command; its outcome, in words. */
  async run(command: Command): Promise<string> {
    try {
      return String((await this.#do(command)) ?? "done");
    } catch (error) {
      if (error instanceof HeedError) return error.code;
      throw error;
    }
  }
  #append(parts: readonly (readonly [Sequence, readonly number[]])[], commit = true): void {
    const before = parts.map(([s]) => [...s.tokenIds]);
    using step = this.cache.reserve(parts.map(([sequence, ids]) => ({ sequence, tokens: ids.length })));
    const values = parts.flatMap(([, ids], i) => chain(1, [...before[i]!, ...ids]).slice(before[i]!.length));
    for (let layer = 0; layer < this.cache.layout.layers; layer++) writeRows(this.cache, step, values, layer);
    if (commit) step.commit(parts.flatMap(([, ids]) => ids));
  }
  async #do({ op, who, ids }: Command): Promise<string | number | void> {
    const { cache } = this;
    const s = this.sequences[who % this.sequences.length];
    if (op === "open" || s === undefined) return void this.sequences.push(cache.open());
    const next = this.sequences[(who + 1) % this.sequences.length]!;
    const tier = who % 2 === 0 ? this.host : this.tier;
    const file = join(this.folder, "saved");
    switch (op) {
      case "append":
      case "cancel":
        return this.#append([[s, ids]], op === "append");
      case "batch":
        return this.#append(
          s === next
            ? [[s, ids]]
            : [
                [s, ids],
                [next, ids.slice(0, 2)],
              ],
        );
      case "match":
      case "partial": {
        const match = cache.match([...this.past, ...ids], { partial: op === "partial" });
        const { length } = match;
        this.sequences.push(cache.open({ match }));
        return length;
      }
      case "fork":
        return void this.sequences.push(...s.fork(1));
      case "truncate":
        return s.truncate(Math.max(0, s.length - ids.length));
      case "release":
        if (!s.swapped) this.past = [...s.tokenIds];
        this.sequences = this.sequences.filter((other) => other !== s);
        return s.release();
      case "swapOut":
        return cache.swapOut(s, tier);
      case "swapIn":
        return cache.swapIn(s);
      case "fence":
        return void this.fences.push(cache.fence([s]));
      case "lift":
        return this.fences.shift()?.[Symbol.dispose]();
      case "save":
        return cache.save(s, file);
      case "load":
        await cache.save(s, file);
        return void this.sequences.push(await cache.load(file));
      case "prefixes": {
        const path = join(this.folder, "prefixes");
        const saved = await cache.savePrefixes(path);
        return `${saved}: ${JSON.stringify(await cache.loadPrefixes(path))}`;
      }
    }
  }
  /** Names and bytes of every page that a sequence lists, rows without a token as zeros. */
  async pages(): Promise<unknown> {
    const { groups } = cacheState(this.cache);
    const present = this.sequences.filter((s) => !s.swapped);
    const seen = present.flatMap((s) =>
      groups.flatMap((group, g) =>
        [...s.pagesOf(g)].map(async (page, i) => {
          const name = nameOf(group, page);
          const rows = Math.min(group.layout.pageSize, s.length - i * group.layout.pageSize);
          if (page === 0 || rows <= 0) return [name];
          return [name, ...(await group.storage.fetchPage(name, rows))];
        }),
      ),
    );
    return Promise.all(seen);
  }
  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
  }
}
describe.skipIf(!floorReason.startsWith("native"))("commands on a device and on the host", () => {
  test("have the same outcomes, books and bytes", async () => {
    const before = memoryUsage();
    const count = new Map<string, number>();
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: SETUPS.length - 1 }), commands, async (setup, trace) => {
        using folders = temporaryFolder();
        const make = async (engine: string): Promise<Twin> => {
          const tier = await FolderTier.open(join(folders.path, engine), { maxBytes: 1 << 14 });
          return new Twin(engine, setup, folders.path, tier);
        };
        using host = await make("portable");
        using device = await make("cuda-emulated");
        for (const command of trace) {
          const outcome = await host.run(command);
          expect([command.op, await device.run(command)]).toEqual([command.op, outcome]);
          const key = `${command.op} ${outcome === "done" || /^\d/.test(outcome) ? "done" : outcome}`;
          count.set(key, (count.get(key) ?? 0) + 1);
          device.cache.check();
          expect(usage(device.cache)).toEqual(usage(host.cache));
          expect(device.sequences.map((s) => s.length)).toEqual(host.sequences.map((s) => s.length));
          expect(await device.pages()).toEqual(await host.pages());
        }
      }),
      { numRuns: 80 },
    );
    expect(memoryUsage().storages).toBe(before.storages);
    for (const op of new Set(OPS))
      expect([op, count.get(`${op} done`) ?? 0]).toSatisfy(([, n]) => (n as number) > 0);
  }, 120_000);
});
