/**
 * A cache beside its model, which is a list of ids for each sequence. A row is a function of whose it is, of all ids up to it, of layer
 * and head, so that a hit on the wrong prefix, a copy too short, or a page handed out too early shows in the rows.
 */
import { OutOfMemoryError } from "@heed/tensor";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
  type Fence,
  FolderTier,
  HostTier,
  type KvCache,
  type PrefixStats,
  type Sequence,
  type Step,
  type Tier,
} from "../../src/index.ts";
import { cacheState } from "../../src/cache.ts";
import { nameOf } from "../../src/residual.ts";
import { type Faults, faultyCalls } from "../file-faults.ts";
import { type Faulty, faulty, layoutOf, poisonedGroups } from "../fixtures.ts";
import { type Coverage, must } from "./checks.ts";
import { NO_FAULT, OWNERS, QUOTAS, SETUPS } from "./commands.ts";
import { Published } from "./published.ts";
import { chain, ExpectedRows, isSame, planesOf, type Planes, type Row, rowAt } from "./rows.ts";

/** A sequence beside its model. */
export interface Member {
  readonly sequence: Sequence;
  readonly owner: number;
  /** What a row is made of before the first id: owner and epoch. */
  readonly seed: number;
  ids: number[];
  /** The longest it has been: windows have moved that far. */
  peak: number;
  /** Tokens that a match brought, of which int4 groups give back whole pages only. */
  readonly matched: number;
  away: Tier | undefined;
  step: OpenStep | undefined;
}
export interface OpenStep {
  readonly step: Step;
  readonly parts: readonly (readonly [Member, readonly number[]])[];
}
export interface OpenFence {
  readonly fence: Fence;
  /** Until when it stands by itself. */
  readonly until: number;
  /** What it covers: pages by group and place, and the values of the tokens on them. */
  readonly pages: readonly Int32Array[]; // by the names that tables had for them
  readonly values: readonly number[];
}
/** A sequence, or the index, in a file. */
export type Saved = Pick<Member, "owner" | "seed" | "ids" | "peak" | "matched">;

const NO_PREFIXES: PrefixStats = {
  blocks: 0,
  hitBlocks: 0,
  missedBlocks: 0,
  partialTokens: 0,
  evictedPages: 0,
  refusedBlocks: 0,
};

/** A cache, what should be in it, and the means to make it fail. `folder` is for its files. */
export class World implements AsyncDisposable {
  readonly cache: KvCache;
  readonly faults: Faulty;
  readonly files: Faults = faultyCalls();
  readonly host: HostTier = new HostTier({ maxBytes: 1200 });
  readonly folder: string;
  readonly coverage: Coverage;
  readonly published: Published;
  readonly epochs: number[] = OWNERS.map(() => 0);
  members: Member[] = [];
  steps: OpenStep[] = [];
  fences: OpenFence[] = [];
  /** Ids that sequences ended with, for matches to come. */
  readonly past: (readonly [owner: number, ids: readonly number[]])[] = [];
  saved: Saved | undefined;
  /** Blocks in the file of prefixes, where there is one of this epoch. */
  savedBlocks: number | undefined;
  clock = 0;
  #tier: FolderTier | undefined;
  readonly #drops: Promise<void>[] = [];
  #seen: PrefixStats = NO_PREFIXES;
  readonly #expected: ExpectedRows;
  constructor(setup: number, engine: string, folder: string, coverage: Coverage) {
    this.faults = faulty(engine);
    this.folder = folder;
    this.coverage = coverage;
    this.cache = poisonedGroups({
      ...SETUPS[setup]!,
      engine: this.faults.engine,
      now: () => this.clock,
      prefixes: { hashBits: 6, quotas: QUOTAS, events: 64 },
    });
    this.published = new Published(this.cache.layout.blockTokens);
    this.#expected = new ExpectedRows(this.cache);
    mkdirSync(folder);
  }
  async tier(): Promise<FolderTier> {
    if (this.#tier !== undefined) return this.#tier;
    const path = join(this.folder, "tier");
    const tier = await FolderTier.open(path, { maxBytes: 1 << 14 }, this.files.calls);
    const { drop } = tier;
    tier.drop = (key) => {
      const work = drop.call(tier, key);
      this.#drops.push(work.catch(() => undefined));
      return work;
    };
    return (this.#tier = tier);
  }
  /** Awaits what a release has left to a tier to do. */
  async rest(): Promise<void> {
    await Promise.all(this.#drops.splice(0));
  }
  file(name: string): string {
    return join(this.folder, name);
  }
  pick(n: number): Member | undefined {
    return this.members[n % this.members.length];
  }
  seedOf(owner: number): number {
    return 1000 * this.epochs[owner]! + 7 * owner + 1;
  }
  add(sequence: Sequence, from: Saved): void {
    this.members.push({ ...from, sequence, ids: [...from.ids], away: undefined, step: undefined });
  }
  remove(m: Member): void {
    this.members = this.members.filter((other) => other !== m);
    this.past.push([m.owner, m.ids]);
    if (this.past.length > 4) this.past.shift();
  }
  /** Runs what may fail for lack of pages or memory; what has failed must have changed nothing, which {@link agree} sees. */
  attempt<T>(fault: number, act: () => T): T | undefined {
    this.faults.arm(fault < NO_FAULT ? fault : Infinity);
    try {
      return act();
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error;
      this.coverage.add(this.faults.fired() ? "engine faults" : "refusals for lack of pages");
      return undefined;
    } finally {
      this.faults.arm(Infinity);
    }
  }
  /** The books hold, and every sequence has the rows of its ids, wherever its pages are and at least where it must see. */
  agree(): void {
    this.cache.check();
    for (const m of this.members) {
      must(m.sequence.length === m.ids.length, `a sequence of ${m.ids.length} has ${m.sequence.length}`);
      must(m.sequence.swapped === (m.away !== undefined), "a sequence is where it is not");
      must(m.sequence.tokenIds.join() === m.ids.join(), "a sequence has other ids");
    }
    const inHost = this.members.filter((m) => m.away === this.host).length;
    must(this.host.stats().entries === inHost, "the tier has what nobody put there");
    this.published.agree(this.cache);
    const idle = this.members.filter((m) => m.step === undefined && m.away === undefined);
    using look = this.cache.reserve(idle.map(({ sequence }) => ({ sequence, tokens: 0 })));
    for (let layer = 0; layer < this.cache.layout.layers; layer++) {
      const view = look.view(layer);
      const planes = planesOf(view);
      const { indptr, indices } = view.table;
      const [starts, listed] = [indptr.data, indices.data];
      idle.forEach((m, n) => this.#rowsOf(m, layer, planes, listed.slice(starts[n], starts[n + 1])));
    }
    this.#count();
  }
  #rowsOf({ sequence, seed, ids }: Member, layer: number, planes: Planes, pages: Int32Array): void {
    const group = layoutOf(this.cache, layer);
    const own = this.namesOf(sequence, this.cache.layout.groups.indexOf(group));
    must(pages.join() === own.join(), "a table lists other pages");
    this.sameRows(layer, planes, pages, chain(seed, ids));
    const first = ids.length - group.window + 1;
    for (let p = 0; p < ids.length; p++)
      must(
        pages[Math.floor(p / group.pageSize)] !== 0 || (p >= group.sinks && p < first),
        `layer ${layer} lacks position ${p} of ${ids.length}`,
      );
  }
  /** Rows of these values are on these pages of a layer, where the pages are not null. */
  sameRows(layer: number, planes: Planes, pages: ArrayLike<number>, values: readonly number[]): void {
    const group = layoutOf(this.cache, layer);
    values.forEach((_, p) => {
      const page = pages[Math.floor(p / group.pageSize)]!;
      if (page === 0) return this.coverage.add("positions behind a window");
      const there = rowAt(planes, group, page, p % group.pageSize);
      const row = this.#expectedRow(layer, page, values, p);
      if (isSame(there, row)) return;
      must(false, `layer ${layer}, position ${p}: [${there.join(" | ")}] is not [${row.join(" | ")}]`);
    });
  }
  #expectedRow(layer: number, page: number, values: readonly number[], p: number): Row {
    const { dtype, pageSize } = layoutOf(this.cache, layer);
    const { storage } = cacheState(this.cache).groups.find((g) => g.layout.layers.includes(layer))!;
    if (dtype !== "int4" || page >= storage.pages) return this.#expected.row(values[p]!, layer);
    this.coverage.add("rows of encoded pages");
    const first = p - (p % pageSize);
    must(first + pageSize <= values.length, `page ${page} was encoded before it was full`);
    return this.#expected.encoded(values.slice(first, first + pageSize), layer)[p % pageSize]!;
  }
  /** The pages of a sequence by the names that tables have for them. */
  namesOf(sequence: Sequence, g: number): Int32Array {
    const group = cacheState(this.cache).groups[g]!;
    return sequence.pagesOf(g).map((page) => nameOf(group, page));
  }
  /** Adds what the cache says of itself since the last time. */
  #count(): void {
    const now = this.cache.stats().prefixes!;
    for (const name of ["hitBlocks", "partialTokens", "evictedPages", "refusedBlocks"] as const)
      this.coverage.add(name, Math.max(0, now[name] - this.#seen[name]));
    this.#seen = now;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.faults.arm(Infinity);
    this.files.arm(Infinity);
    this.cache[Symbol.dispose]();
    await this.rest();
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 3 });
  }
}
