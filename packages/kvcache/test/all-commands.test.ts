/**
 * Everything a cache can do, in any order: the model is a list of ids for each sequence. A row is a function of whose it is, of all ids
 * up to it, of layer and head, so that a hit on the wrong prefix, a copy too short, or a page handed out too early shows in the rows.
 */
import { memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Fence,
  type GroupedCacheOptions,
  HostTier,
  type KvCache,
  PageFileError,
  type Sequence,
  StateError,
  type Step,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { expected, type Faulty, faulty, gathered, layoutOf, poisonedGroups, writeLayer } from "./fixtures.ts";

const rows = { numKvHeads: 1, headDim: 3, valueHeadDim: 2 };
const GROUPS = [
  { ...rows, layers: [0, 2], pageSize: 4, maxPages: 11 },
  {
    ...rows,
    layers: [1],
    pageSize: 2,
    maxPages: 18,
    window: 5,
    sinks: 3,
    layout: "token-major",
    dtype: "bfloat16",
  },
  { ...rows, layers: [3], pageSize: 4, maxPages: 10, window: 3, valuesInKeys: true },
] as const satisfies GroupedCacheOptions["groups"];
const LAYERS = 4;
const OWNERS = [{}, { namespace: "a" }, { namespace: "a", adapter: "a" }] as const;
const MARGIN = 2;

interface Member {
  readonly sequence: Sequence;
  readonly owner: number;
  /** What a row is made of before the first id: owner and epoch. */
  readonly seed: number;
  ids: number[];
  /** The longest it has been: windows have moved that far. */
  peak: number;
  away: boolean;
  step: OpenStep | undefined;
}
interface OpenStep {
  readonly step: Step;
  readonly parts: readonly (readonly [Member, readonly number[]])[];
}
/** Listed as often as they are to come. */
const OPS =
  "open match match partial append append append append append append begin commit cancel " +
  "fork truncate truncate release fence lift swapOut swapIn save load corrupt invalidate reset";
interface Op {
  readonly op: string;
  readonly who: number;
  readonly ids: readonly number[];
  readonly fault: number;
}
/** The value that stands for a prefix: of its seed and of every id. */
function chain(seed: number, ids: readonly number[]): number[] {
  let hash = seed;
  return ids.map((id) => (hash = Math.imul(hash ^ (id + 1), 0x9e3779b1) ^ (hash >>> 15)));
}

class World {
  readonly cache: KvCache;
  readonly faults: Faulty;
  readonly tier = new HostTier({ maxBytes: 1200 });
  readonly file: string;
  members: Member[] = [];
  steps: OpenStep[] = [];
  fences: Fence[] = [];
  epoch = 0;
  saved: Omit<Member, "sequence" | "step" | "away"> | undefined;
  constructor(engine: string, file: string) {
    this.faults = faulty(engine);
    this.file = file;
    this.cache = poisonedGroups({
      groups: GROUPS,
      draftMargin: MARGIN,
      engine: this.faults.engine,
      prefixes: { hashBits: 6, quotas: { a: 3 } },
    });
  }
  pick(n: number): Member | undefined {
    return this.members[n % this.members.length];
  }
  add(sequence: Sequence, owner: number, seed: number, ids: readonly number[], peak = ids.length): void {
    this.members.push({ sequence, owner, seed, ids: [...ids], peak, away: false, step: undefined });
  }
  seedOf(owner: number): number {
    return 1000 * this.epoch + 7 * owner + 1;
  }
  /** Runs what may fail for lack of pages or memory; what has failed must have changed nothing, which {@link agree} sees. */
  attempt<T>(fault: number, act: () => T): T | undefined {
    this.faults.arm(fault);
    try {
      return act();
    } catch (error) {
      expect(error).toBeInstanceOf(OutOfMemoryError);
      return undefined;
    } finally {
      this.faults.arm(Infinity);
    }
  }
  open(owner: number, ids: readonly number[], partial: boolean | undefined, fault: number): void {
    const whose = OWNERS[owner]!;
    if (partial === undefined) return this.add(this.cache.open(whose), owner, this.seedOf(owner), []);
    using match = this.cache.match(ids, { ...whose, partial });
    expect(match.length).toBeLessThan(Math.max(1, ids.length));
    this.cache.check();
    if (fault < 7) return; // dropped
    const { length } = match;
    this.add(this.cache.open({ match }), owner, this.seedOf(owner), ids.slice(0, length));
  }
  begin({ who, ids, fault }: Op): OpenStep | undefined {
    const all = [who, who + 1, who + 2].slice(0, 1 + (ids.length % 3)).map((n) => this.pick(n)!);
    const free = [...new Set(all)].filter((m) => m !== undefined && !m.away && m.step === undefined);
    const parts = free.map((m, i) => [m, i === 0 ? ids : ids.slice(0, 1)] as const);
    const requests = parts.map(([m, list]) => ({ sequence: m.sequence, tokens: list.length }));
    const step = this.attempt(fault, () => this.cache.reserve(requests));
    if (step === undefined) return undefined;
    const open = { step, parts };
    for (const [m] of parts) m.step = open;
    this.steps.push(open);
    return open;
  }
  finish({ step, parts }: OpenStep): void {
    const hashes = parts.flatMap(([m, ids]) => chain(m.seed, [...m.ids, ...ids]).slice(m.ids.length));
    for (let layer = 0; layer < LAYERS; layer++) writeLayer(this.cache, step, hashes, layer);
    step.commit(parts.flatMap(([, ids]) => ids));
    for (const [m, ids] of parts) m.peak = Math.max(m.peak, m.ids.push(...ids));
  }
  end(open: OpenStep): void {
    for (const [m] of open.parts) m.step = undefined;
    this.steps = this.steps.filter((other) => other !== open);
  }
  truncate(m: Member, share: number): void {
    const length = Math.max(0, m.ids.length - share);
    try {
      m.sequence.truncate(length);
    } catch (error) {
      if (length >= m.peak - MARGIN || !(error instanceof StateError)) throw error;
      return;
    }
    m.ids.length = length;
  }
  async apply(op: Op): Promise<void> {
    const m = this.pick(op.who);
    const owner = op.who % OWNERS.length;
    const open = this.steps[op.who % this.steps.length];
    if (op.op === "open") this.open(owner, [], undefined, 0);
    else if (op.op === "match" || op.op === "partial") {
      const ids = [...(m?.ids ?? []), ...op.ids];
      const whose = op.ids.length % 4 === 0 ? owner : (m?.owner ?? owner);
      this.open(whose, ids, op.op === "partial", op.fault);
    } else if (op.op === "append") {
      const begun = this.begin(op);
      if (begun === undefined) return;
      this.finish(begun);
      this.end(begun);
    } else if (op.op === "begin") this.begin(op);
    else if (op.op === "commit" || op.op === "cancel") {
      if (open === undefined) return;
      if (op.op === "commit") this.finish(open);
      else open.step.cancel();
      this.end(open);
    } else if (op.op === "lift") this.fences.shift()?.[Symbol.dispose]();
    else if (op.op === "invalidate") {
      this.cache.invalidate();
      this.epoch++;
      this.saved = undefined;
    } else if (op.op === "reset") {
      if (this.members.length + this.steps.length + this.fences.length === 0) this.cache.reset();
      else expect(() => this.cache.reset()).toThrow(StateError);
    } else if (op.op === "load" || op.op === "corrupt") await this.load(op);
    else if (m !== undefined && m.step === undefined) await this.applyTo(m, op);
  }
  async applyTo(m: Member, { op, ids }: Op): Promise<void> {
    if (op === "release") {
      m.sequence.release();
      this.members = this.members.filter((other) => other !== m);
    } else if (op === "swapIn" && m.away) {
      m.away = !(await this.settles(this.cache.swapIn(m.sequence)));
    } else if (m.away) {
      for (const use of [
        () => m.sequence.fork(),
        () => m.sequence.truncate(0),
        () => this.cache.fence([m.sequence]),
      ])
        expect(use).toThrow(StateError);
    } else if (op === "fork") {
      for (const fork of m.sequence.fork(1 + (ids.length % 2)))
        this.add(fork, m.owner, m.seed, m.ids, m.peak);
    } else if (op === "truncate") this.truncate(m, ids.length);
    else if (op === "fence") this.fences.push(this.cache.fence([m.sequence]));
    else if (op === "swapOut") m.away = await this.settles(this.cache.swapOut(m.sequence, this.tier));
    else if (op === "save" && m.seed === this.seedOf(m.owner)) {
      await this.cache.save(m.sequence, this.file);
      this.saved = { owner: m.owner, seed: m.seed, ids: [...m.ids], peak: m.peak };
    }
  }
  /** Loads what was saved, or sees that a damaged copy of it is refused. */
  async load({ op, who }: Op): Promise<void> {
    const { saved } = this;
    if (saved === undefined) return;
    if (op === "load") {
      const loading = this.cache.load(this.file, OWNERS[saved.owner]!);
      if (await this.settles(loading))
        this.add(await loading, saved.owner, saved.seed, saved.ids, saved.peak);
      return;
    }
    const bytes = await Bun.file(this.file).bytes();
    bytes[(who * 7919) % bytes.length]! ^= 1 << (who % 8);
    await Bun.write(`${this.file}.bad`, bytes);
    const error: unknown = await this.cache.load(`${this.file}.bad`).catch((reason: unknown) => reason);
    expect(error instanceof PageFileError || error instanceof OutOfMemoryError).toBe(true);
  }
  /** Whether it has resolved; it may reject for lack of memory or pages. */
  async settles(work: Promise<unknown>): Promise<boolean> {
    try {
      await work;
      return true;
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error;
      return false;
    }
  }
  /** The books hold, and every sequence has the rows of its ids, wherever its pages are and at least where it must see. */
  agree(): void {
    this.cache.check();
    const idle = this.members.filter((m) => m.step === undefined && !m.away);
    for (const m of this.members) {
      expect([m.sequence.length, m.sequence.swapped]).toEqual([m.ids.length, m.away]);
      expect(Array.from(m.sequence.tokenIds)).toEqual(m.ids);
    }
    using look = this.cache.reserve(idle.map(({ sequence }) => ({ sequence, tokens: 0 })));
    for (let layer = 0; layer < LAYERS; layer++) idle.forEach((m, n) => this.sameRows(look, layer, m, n));
  }
  sameRows(look: Step, layer: number, { sequence, seed, ids }: Member, n: number): void {
    const group = layoutOf(this.cache, layer);
    const pages = sequence.pagesOf(this.cache.layout.groups.indexOf(group));
    const seen = gathered(look.view(layer), n);
    const should = expected(this.cache, chain(seed, ids), layer);
    const there = ids.map((_, p) => pages[Math.floor(p / group.pageSize)] !== 0);
    const mustSee = ids.map((_, p) => p < group.sinks || p > ids.length - group.window);
    expect(mustSee.every((must, p) => there[p] || !must)).toBe(true);
    const present = (values: number[], width: number): number[] =>
      values.filter((_, i) => there[Math.floor(i / width)]);
    expect(present(seen.k, group.headDim)).toEqual(present(should.k, group.headDim));
    expect(present(seen.v, group.valueHeadDim)).toEqual(present(should.v, group.valueHeadDim));
  }
}

const ops: fc.Arbitrary<Op[]> = fc.array(
  fc.record({
    op: fc.constantFrom(...OPS.split(" ")),
    who: fc.nat({ max: 11 }),
    ids: fc.array(fc.nat({ max: 1 }), { minLength: 1, maxLength: 9, size: "max" }),
    fault: fc.integer({ min: 1, max: 36 }).map((n) => (n > 9 ? Infinity : n)),
  }),
  { minLength: 1, maxLength: 60, size: "max" },
);
async function runAll(trace: readonly Op[], engine: string, file: string): Promise<void> {
  const world = new World(engine, file);
  using _ = world.cache;
  for (const op of trace) {
    await world.apply(op);
    world.agree();
  }
}

test.each(engines)(
  "whatever is done on %s, every sequence has the rows of its ids and the books hold",
  async (engine) => {
    const folder = await mkdtemp(join(tmpdir(), "heed-"));
    const before = memoryUsage();
    try {
      await fc.assert(
        fc.asyncProperty(ops, (trace) => runAll(trace, engine, join(folder, "saved"))),
        { numRuns: 100 },
      );
    } finally {
      await rm(folder, { recursive: true });
    }
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
  },
  120_000,
);
