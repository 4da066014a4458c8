import { OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type KvCache,
  type PrefixEntry,
  type PrefixEvent,
  type PrefixMatch,
  type Sequence,
  StateError,
} from "../src/index.ts";
import type { PrefixIndex } from "../src/prefix-index.ts";
import type { PrefixOwner } from "../src/prefix-roots.ts";
import { append, booksOf, contents, expected, poisonedGroups } from "./fixtures.ts";

const OWNERS = [{}, { namespace: "a" }, { adapter: "a" }] as const;
const BLOCK = 4;
/** What an index elsewhere knows from events alone: entries by key. */
function replay(index: Map<string, PrefixEntry>, events: readonly PrefixEvent[]): void {
  for (const event of events) {
    if (event.kind === "cleared") index.clear();
    else if (event.kind === "removed") for (const key of event.keys) expect(index.delete(key)).toBe(true);
    else {
      const { kind: _, number: __, ...entry } = event;
      expect(index.has(entry.key)).toBe(false);
      index.set(entry.key, entry);
    }
  }
}
/** All token lists that lead to a published block of an owner, by following parents. */
function chains(
  entries: readonly PrefixEntry[],
  { namespace = "", adapter }: { namespace?: string; adapter?: string },
): string[] {
  const of = new Map<string, readonly number[]>();
  for (const { key, parent, tokens } of entries) of.set(key, [...(of.get(parent) ?? []), ...tokens]);
  return entries
    .filter((e) => e.namespace === namespace && e.adapter === adapter)
    .map(({ key }) => of.get(key)!.join());
}
/** Whether both groups hold what a query after `length` tokens sees, by trying every token of the chain. */
function canGoOn(
  { nodes, groups }: PrefixIndex,
  chain: readonly number[],
  length: number,
  margin: number,
): boolean {
  return groups.every(({ layout }, g) => {
    for (let p = 0; p < length; p++) {
      const page = Math.floor(p / layout.pageSize);
      const first = page * layout.pageSize; // a page is needed if one of its tokens is
      const last = first + layout.pageSize - 1;
      if (last < length - margin - layout.window + 1 && first >= layout.sinks) continue;
      const perBlock = BLOCK / layout.pageSize;
      const at =
        chain[Math.floor(page / perBlock)]! * nodes.pagesPerNode + nodes.pageStart[g]! + (page % perBlock);
      if (nodes.pages[at] === 0) return false;
    }
    return true;
  });
}
/** The longest prefix that leaves one token and can be gone on from, over all blocks that there are. */
function longest(index: PrefixIndex, ids: readonly number[], owner: PrefixOwner, margin: number): number {
  let best = 0;
  for (const last of index.published()) {
    const chain: number[] = [];
    for (let node = last; index.nodes.depth[node]! > 0; node = index.nodes.parent[node]!) chain.unshift(node);
    const { namespace, adapter } = index.roots.above(last)!;
    const length = chain.length * BLOCK;
    if (namespace !== (owner.namespace ?? "") || adapter !== owner.adapter || length >= ids.length) continue;
    const same = chain.every((node, b) =>
      index.nodes.tokensOf(node).every((id, i) => id === ids[b * BLOCK + i]),
    );
    if (same && canGoOn(index, chain, length, margin)) best = Math.max(best, length);
  }
  return best;
}
interface Member {
  readonly sequence: Sequence;
  readonly owner: number;
  ids: number[];
}
const commands = [
  "match",
  "partial",
  "append",
  "append",
  "append",
  "truncate",
  "release",
  "release",
] as const;
const rare = ["open", "fork", "cancel", "drop", "use", "invalidate", "fence", "lift", "reset"] as const;

/** A cache with a full and a windowed group, the sequences and matches that are open, and an index kept from events. */
class World {
  readonly cache: KvCache;
  readonly members: Member[] = [];
  readonly matches: {
    readonly match: PrefixMatch;
    readonly ids: readonly number[];
    readonly owner: number;
  }[] = [];
  readonly fences: Disposable[] = [];
  readonly copy = new Map<string, PrefixEntry>();
  readonly calls: unknown[] = [];
  next = 0;
  constructor(hashBits: number, quota: number) {
    const shape = { numKvHeads: 1, headDim: 1 };
    this.cache = poisonedGroups({
      groups: [
        { ...shape, layers: [0], pageSize: BLOCK, maxPages: 7 },
        { ...shape, layers: [1], pageSize: 2, maxPages: 12, window: 3, sinks: 1 },
      ],
      draftMargin: 1,
      prefixes: { hashBits, quotas: { a: quota } },
      now: () => this.calls.length,
    });
  }
  open(owner: number, ids: readonly number[], match: PrefixMatch | undefined, options = {}): void {
    const sequence = this.cache.open(
      match === undefined ? { ...OWNERS[owner], ...options } : { match, ...options },
    );
    this.members.push({ sequence, owner, ids: ids.slice(0, sequence.length) });
  }
  do(kind: (typeof commands)[number] | (typeof rare)[number], pick: number, ids: readonly number[]): void {
    const { cache, members, matches, fences } = this;
    const owner = pick % OWNERS.length;
    const member = members[pick % members.length];
    const options = pick % 4 === 0 ? { priority: (pick * 7) % 101, expires: pick % 60 } : {};
    if (kind === "open") this.open(owner, [], undefined, options);
    else if (kind === "match" || kind === "partial") {
      const match = cache.match(ids, { ...OWNERS[owner], partial: kind === "partial" });
      if (pick % 2 === 0) this.open(owner, ids, match, options);
      else matches.push({ match, ids, owner });
    } else if (kind === "drop") matches.splice(pick % matches.length, 1)[0]?.match[Symbol.dispose]();
    else if (kind === "use" && matches.length > 0) {
      const [used] = matches.splice(pick % matches.length, 1);
      try {
        this.open(used!.owner, used!.ids, used!.match);
      } catch (error) {
        expect(error).toBeInstanceOf(StateError); // it was invalidated
        used!.match[Symbol.dispose]();
      }
    } else if (kind === "invalidate" && pick % 3 === 0)
      cache.invalidate(pick % 2 === 0 ? { adapter: "a" } : {});
    else if (kind === "lift") fences.splice(pick % fences.length, 1)[0]?.[Symbol.dispose]();
    else if (kind === "reset" && members.length + matches.length + fences.length === 0) cache.reset();
    else if (member !== undefined) this.#doTo(member, kind, pick, ids);
  }
  #doTo(member: Member, kind: string, pick: number, ids: readonly number[]): void {
    const { cache, members, fences } = this;
    const { sequence } = member;
    if (kind === "append") {
      try {
        append(cache, [[sequence, ids]]);
        member.ids.push(...ids);
      } catch (error) {
        expect(error).toBeInstanceOf(OutOfMemoryError);
      }
    } else if (kind === "truncate") {
      try {
        sequence.truncate(pick % (sequence.length + 1));
        member.ids.length = sequence.length;
      } catch (error) {
        expect(error).toBeInstanceOf(StateError); // behind the window
      }
    } else if (kind === "fork") {
      const [fork] = sequence.fork();
      members.push({ sequence: fork!, owner: member.owner, ids: member.ids.slice() });
    } else if (kind === "release") members.splice(members.indexOf(member), 1)[0]!.sequence.release();
    else if (kind === "cancel") {
      try {
        cache.reserve([{ sequence, tokens: ids.length }]).cancel();
      } catch (error) {
        expect(error).toBeInstanceOf(OutOfMemoryError);
      }
    } else if (kind === "fence") fences.push(cache.fence([sequence]));
  }
  /** Rows of every sequence are those of its tokens, as far as the next query sees them. */
  checkRows(): void {
    for (const { sequence, ids } of this.members) {
      expect(Array.from(sequence.tokenIds)).toEqual(ids);
      for (const layer of [0, 1]) {
        const [rows, wanted] = [contents(this.cache, sequence, layer).k, expected(this.cache, ids, layer).k];
        const seen = (p: number): boolean => layer === 0 || p < 1 || p > ids.length - 3;
        expect(rows.filter((_, p) => seen(p))).toEqual(wanted.filter((_, p) => seen(p)));
      }
    }
  }
  checkIndex(ids: readonly number[], known: ReadonlySet<string>[]): void {
    const batch = this.cache.events(this.next);
    expect(batch.lost).toBe(0);
    replay(this.copy, batch.events);
    this.next = batch.next;
    const entries = this.cache.prefixes();
    expect(new Map(entries.map((e) => [e.key, e]))).toEqual(this.copy);
    OWNERS.forEach((owner, n) => {
      const list = chains(entries, owner);
      for (const chain of list) expect(known[n]!.has(chain)).toBe(true);
      const best = longest(booksOf(this.cache).prefixes!, ids, owner, 1);
      using match = this.cache.match(ids, owner);
      expect(match.length).toBe(best);
    });
  }
  close(): void {
    for (const { match } of this.matches) match[Symbol.dispose]();
    for (const fence of this.fences) fence[Symbol.dispose]();
    for (const { sequence } of this.members) sequence.release();
  }
}
const token = fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, fc.nat(1));
const step = fc.record({
  kind: fc.constantFrom(...commands, ...commands, ...rare),
  pick: fc.nat(1000),
  ids: fc.array(token, { minLength: 1, maxLength: 13, size: "max" }),
});
const STEPS = fc.array(step, { maxLength: 60, size: "max" });

describe("a cache that keeps prefixes, after any commands", () => {
  test("finds only what was computed, of its owner, with the right rows; events rebuild the index; books hold", () => {
    fc.assert(
      fc.property(fc.constantFrom(0, 4, 32), fc.nat(3), STEPS, (bits, quota, steps) => {
        const world = new World(bits, quota);
        using cache = world.cache;
        const known = OWNERS.map(() => new Set<string>());
        for (const { kind, pick, ids } of steps) {
          world.calls.push(kind);
          world.do(kind, pick, ids);
          cache.check();
          for (const { owner, ids: list } of world.members)
            for (let n = BLOCK; n <= list.length; n += BLOCK) known[owner]!.add(list.slice(0, n).join());
          world.checkRows();
          world.checkIndex([...ids, ...ids], known);
          cache.check();
        }
        world.close();
        cache.check();
        expect(cache.stats()).toMatchObject({ usedPages: 0, pinnedPages: 0, inFlightPages: 0 });
      }),
      { numRuns: 100 },
    );
  });
  test("the same calls give the same pages, keys and events", () => {
    const trace = (steps: readonly { kind: never; pick: number; ids: number[] }[], bits: number): unknown => {
      const world = new World(bits, 3);
      using cache = world.cache;
      const seen: unknown[] = [];
      for (const { kind, pick, ids } of steps) {
        world.calls.push(kind);
        world.do(kind, pick, ids);
        seen.push(
          world.members.map(({ sequence }) => [
            Array.from(sequence.pagesOf(0)),
            Array.from(sequence.pagesOf(1)),
          ]),
        );
      }
      const events = cache.events();
      world.close();
      return [seen, events];
    };
    fc.assert(
      fc.property(STEPS, (steps) => {
        expect(trace(steps as never, 3)).toEqual(trace(steps as never, 32));
      }),
      { numRuns: 30 },
    );
  });
});
