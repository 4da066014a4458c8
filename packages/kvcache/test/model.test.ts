/**
 * The cache against a model that keeps lists of ids and of pages: random commands on both, and after each one the books, the pages and
 * every row must agree. The model's free lists say which page comes next, so the same trace gives the same pages.
 */
import { ArgumentError, DisposedError, memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Fence,
  type GroupedCacheOptions,
  type KvCache,
  type Sequence,
  StateError,
  type Step,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import {
  expected,
  type Faulty,
  faulty,
  gathered,
  layoutOf,
  poisonedGroups,
  poolOf,
  writeLayer,
} from "./fixtures.ts";
import { Model, type ModelFence, type ModelSequence, type ModelStep } from "./model.ts";

const rows = { numKvHeads: 1, headDim: 3, valueHeadDim: 2 };
/** Full attention; a window with sinks in smaller pages, token-major; latent rows with a window. Page counts come out short together. */
const GROUPS = [
  { ...rows, layers: [0, 2], pageSize: 4, maxPages: 9 },
  {
    ...rows,
    layers: [1],
    pageSize: 2,
    maxPages: 15,
    window: 5,
    sinks: 3,
    layout: "token-major",
    dtype: "bfloat16",
  },
  { ...rows, layers: [3], pageSize: 4, maxPages: 8, window: 3, valuesInKeys: true },
] as const satisfies GroupedCacheOptions["groups"];
const LAYERS = 4;

interface Real {
  readonly cache: KvCache;
  readonly faults: Faulty;
  readonly sequences: Map<ModelSequence, Sequence>;
  readonly steps: Map<ModelStep, Step>;
  readonly fences: Map<ModelFence, Fence>;
  readonly released: Sequence[];
}
type Command = fc.Command<Model, Real>;
const pick = <T>(list: readonly T[], n: number): T | undefined => list[n % list.length];

/** Everything that can be seen of the cache equals the model. */
function agree(m: Model, r: Real): void {
  r.cache.check();
  agreeOnPages(m, r);
  for (const sequence of m.sequences) {
    const real = r.sequences.get(sequence)!;
    expect(real.length).toBe(sequence.ids.length);
    expect(Array.from(real.tokenIds)).toEqual(sequence.ids);
    sequence.pages.forEach((pages, g) => expect(Array.from(real.pagesOf(g))).toEqual(pages));
  }
  const idle = m.sequences.filter((s) => s.step === undefined);
  using look = r.cache.reserve(idle.map((s) => ({ sequence: r.sequences.get(s)!, tokens: 0 })));
  for (let layer = 0; layer < LAYERS; layer++) {
    idle.forEach((s, n) => sameRows(m, r, look, layer, n, s, s.ids));
    for (const step of m.steps) rowsOfStep(m, r, step, layer);
  }
}
/** Pages by state: the model counts its own references anew. */
function agreeOnPages(m: Model, r: Real): void {
  const stats = r.cache.stats();
  expect(stats).toMatchObject({
    tokens: m.sequences.reduce((n, s) => n + s.ids.length, 0),
    sequences: m.sequences.length,
    openSteps: m.steps.length,
    openFences: m.fences.length,
  });
  m.groups.forEach((_, g) => {
    const references = m.recount(g);
    expect(m.references[g]!).toEqual(references);
    const live = references.filter((n) => n > 0).length;
    const inFlight = references.filter((n, page) => n === 0 && m.fenced[g]![page]! > 0).length;
    expect(stats.groups[g]!).toMatchObject({
      freePages: m.free[g]!.length,
      usedPages: live,
      inFlightPages: inFlight,
    });
    expect(live + inFlight + m.free[g]!.length).toBe(stats.groups[g]!.totalPages);
    expect(Array.from(poolOf(r.cache, g).freePages())).toEqual(m.free[g]!);
  });
}
/** Rows of sequence n in a step's view are those of its ids, wherever the sequence has a page; and it has one for all it may see. */
function sameRows(
  m: Model,
  r: Real,
  step: Step,
  layer: number,
  n: number,
  sequence: ModelSequence,
  ids: number[],
): void {
  const { layers: _, ...group } = layoutOf(r.cache, layer);
  const pages = sequence.pages[m.groups.findIndex(({ layers }) => layers.includes(layer))]!;
  const seen = gathered(step.view(layer), n);
  const should = expected(r.cache, ids, layer);
  const size = { k: group.numKvHeads * group.headDim, v: group.numKvHeads * group.valueHeadDim };
  for (let p = 0; p < ids.length; p++) {
    const there = pages[Math.floor(p / group.pageSize)] !== 0;
    if (p < group.sinks || p > sequence.ids.length - group.window) expect(there).toBe(true);
    if (!there) continue;
    for (const part of ["k", "v"] as const) {
      const [from, to] = [p * size[part], (p + 1) * size[part]];
      expect(seen[part].slice(from, to)).toEqual(should[part].slice(from, to));
    }
  }
}
/** Rows of a layer that the step has written, old and new. */
function rowsOfStep(m: Model, r: Real, step: ModelStep, layer: number): void {
  if (!step.written.has(layer) && step.ids.length > 0) return;
  let at = 0;
  step.entries.forEach(({ sequence, tokens }, n) => {
    const ids = [...sequence.ids, ...step.ids.slice(at, (at += tokens))];
    sameRows(m, r, r.steps.get(step)!, layer, n, sequence, ids);
  });
}
function command(name: string, run: (m: Model, r: Real) => void): Command {
  return {
    check: () => true,
    run: (m, r) => {
      run(m, r);
      agree(m, r);
    },
    toString: () => name,
  };
}
const open = (): Command => command("open", (m, r) => void r.sequences.set(m.open(), r.cache.open()));
type Wanted = readonly (readonly [number, number])[];
/**
 * A step on both sides, unless it runs out of pages, names a sequence that is in a step, or the engine fails at its n-th call: then the
 * error, and no step.
 */
function begin(m: Model, r: Real, wanted: Wanted, fault = Infinity): ModelStep | undefined {
  const requests = new Map<ModelSequence, number>();
  for (const [n, tokens] of wanted) {
    const sequence = pick(m.sequences, n);
    if (sequence !== undefined) requests.set(sequence, tokens);
  }
  const list = [...requests];
  const act = (): Step =>
    r.cache.reserve(list.map(([s, tokens]) => ({ sequence: r.sequences.get(s)!, tokens })));
  if (list.some(([s]) => s.step !== undefined)) return void expect(act).toThrow(StateError);
  if (m.needs(list).some((needed, g) => needed > m.free[g]!.length))
    return void expect(act).toThrow(OutOfMemoryError);
  r.faults.arm(fault);
  const real = orFault(r, act);
  if (real === undefined) return undefined;
  const step = m.begin(list);
  r.steps.set(step, real);
  return step;
}
/** What `act` returns, or undefined when the engine failed as it was told to. */
function orFault<T>(r: Real, act: () => T): T | undefined {
  try {
    return act();
  } catch (error) {
    if (!r.faults.fired()) throw error;
    return undefined;
  } finally {
    r.faults.arm(Infinity);
  }
}
function writeStep(r: Real, step: ModelStep, layer: number): void {
  writeLayer(r.cache, r.steps.get(step)!, step.ids, layer);
  step.written.add(layer);
}
/** Commits on both sides, or sees that a step with an unwritten layer refuses. */
function finish(m: Model, r: Real, step: ModelStep): void {
  const act = (): void => r.steps.get(step)!.commit(step.ids);
  if (step.ids.length > 0 && step.written.size < LAYERS) return void expect(act).toThrow(StateError);
  act();
  m.commit(step);
}
const reserve = (wanted: Wanted, fault: number): Command =>
  command(
    `reserve ${JSON.stringify(wanted)}, failing at ${fault}`,
    (m, r) => void begin(m, r, wanted, fault),
  );
/** A whole step at once. */
const appendTokens = (wanted: Wanted): Command =>
  command(`append ${JSON.stringify(wanted)}`, (m, r) => {
    const step = begin(m, r, wanted);
    if (step === undefined) return;
    for (let layer = 0; layer < LAYERS; layer++) writeStep(r, step, layer);
    finish(m, r, step);
  });
const onStep = (name: string, run: (m: Model, r: Real, step: ModelStep) => void) => (n: number) =>
  command(`${name} ${n}`, (m, r) => {
    const step = pick(m.steps, n);
    if (step !== undefined) run(m, r, step);
  });
const onSequence =
  (name: string, run: (m: Model, r: Real, sequence: ModelSequence, real: Sequence) => void) => (n: number) =>
    command(`${name} ${n}`, (m, r) => {
      const sequence = pick(m.sequences, n);
      if (sequence !== undefined) run(m, r, sequence, r.sequences.get(sequence)!);
    });
const write = (n: number, layer: number): Command =>
  onStep(`write layer ${layer} of`, (_, r, step) => writeStep(r, step, layer))(n);
const writeAll = onStep("write all of", (_, r, step) => {
  for (let layer = 0; layer < LAYERS; layer++) writeStep(r, step, layer);
});
const commit = onStep("commit", finish);
const cancel = onStep("cancel", (m, r, step) => {
  r.steps.get(step)!.cancel();
  m.cancel(step);
  expect(() => r.steps.get(step)!.cancel()).toThrow(StateError);
});
const truncate = (n: number, share: number, back: boolean): Command =>
  onSequence(`truncate by ${share}, ${back ? "from the end" : "from the start"}`, (m, _, sequence, real) => {
    const { length: present } = sequence.ids;
    const length = back ? Math.max(0, present - Math.floor(6 * share)) : Math.round(share * (present + 1));
    const act = (): void => real.truncate(length);
    if (sequence.step !== undefined) expect(act).toThrow(StateError);
    else if (length > present) expect(act).toThrow(ArgumentError);
    else if (!m.canTruncate(sequence, length)) expect(act).toThrow(StateError);
    else {
      act();
      m.truncate(sequence, length);
    }
  })(n);
const fork = (n: number, count: number): Command =>
  onSequence(`fork ${count} of`, (m, r, sequence, real) => {
    if (sequence.step !== undefined) return void expect(() => real.fork(count)).toThrow(StateError);
    for (const made of real.fork(count)) r.sequences.set(m.fork(sequence), made);
  })(n);
const release = onSequence("release", (m, r, sequence, real) => {
  if (sequence.step !== undefined) return void expect(() => real.release()).toThrow(StateError);
  real.release();
  m.release(sequence);
  r.released.push(real);
});
const dispose = onSequence("dispose", (m, r, sequence, real) => {
  real[Symbol.dispose]();
  m.release(sequence);
  r.released.push(real);
});
const fence = (ns: readonly number[]): Command =>
  command(`fence ${ns}`, (m, r) => {
    const chosen = [...new Set(ns.map((n) => pick(m.sequences, n)!))].filter((s) => s !== undefined);
    r.fences.set(m.fence(chosen), r.cache.fence(chosen.map((s) => r.sequences.get(s)!)));
  });
const lift = (n: number): Command =>
  command(`lift ${n}`, (m, r) => {
    const held = pick(m.fences, n);
    if (held === undefined) return;
    for (let twice = 0; twice < 2; twice++) r.fences.get(held)![Symbol.dispose]();
    m.lift(held);
  });
const useReleased = (n: number): Command =>
  command(`use released ${n}`, (_, r) => {
    const sequence = pick(r.released, n);
    if (sequence === undefined) return;
    sequence[Symbol.dispose]();
    for (const use of [
      () => sequence.release(),
      () => sequence.fork(),
      () => sequence.truncate(0),
      () => r.cache.reserve([{ sequence, tokens: 1 }]),
      () => r.cache.fence([sequence]),
    ]) {
      expect(use).toThrow(DisposedError);
    }
  });

const n = fc.nat({ max: 5 });
const layer = fc.nat({ max: LAYERS - 1 });
const wanted = fc.array(fc.tuple(n, fc.nat({ max: 7 })), { minLength: 1, maxLength: 3 });
const decode = fc
  .uniqueArray(n, { minLength: 1, maxLength: 6 })
  .map((all) => all.map((at) => [at, 1] as const));
const fault = fc.oneof(fc.constant(Infinity), fc.integer({ min: 1, max: 9 }));
const often = (times: number, arbitrary: fc.Arbitrary<Command>): fc.Arbitrary<Command>[] =>
  new Array(times).fill(arbitrary);
const commands = fc.commands(
  [
    ...often(2, fc.constant(open())),
    ...often(4, wanted.map(appendTokens)),
    ...often(3, decode.map(appendTokens)),
    ...often(
      3,
      fc.tuple(fc.oneof(wanted, decode), fault).map(([all, at]) => reserve(all, at)),
    ),
    fc.tuple(n, layer).map(([at, of]) => write(at, of)),
    ...often(2, n.map(writeAll)),
    ...often(2, n.map(commit)),
    n.map(cancel),
    ...often(
      3,
      fc
        .tuple(n, fc.double({ min: 0, max: 1, noNaN: true }), fc.boolean())
        .map(([at, share, back]) => truncate(at, share, back)),
    ),
    ...often(
      3,
      fc.tuple(n, fc.integer({ min: 1, max: 3 })).map(([at, count]) => fork(at, count)),
    ),
    ...often(2, n.map(release)),
    n.map(dispose),
    fc.array(n, { maxLength: 3 }).map(fence),
    n.map(lift),
    n.map(useReleased),
  ],
  { maxCommands: 80, size: "max" }, // the default size stops at about ten
);
function runTrace(trace: Iterable<Command>, draftMargin: number, engine: string): void {
  const faults = faulty(engine);
  using cache = poisonedGroups({ groups: GROUPS, draftMargin, engine: faults.engine });
  const model = new Model(
    cache.layout.groups,
    draftMargin,
    GROUPS.map(({ maxPages }) => maxPages),
  );
  const maps = { sequences: new Map(), steps: new Map(), fences: new Map() };
  fc.modelRun(() => ({ model, real: { cache, faults, ...maps, released: [] } }), trace);
}

test.each(engines)(
  "any trace of commands on %s leaves the cache as the model says, and disposal frees everything",
  (engine) => {
    const before = memoryUsage();
    fc.assert(
      fc.property(commands, fc.nat({ max: 3 }), (trace, margin) => runTrace(trace, margin, engine)),
      { numRuns: 200 },
    );
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
  },
  120_000,
);
