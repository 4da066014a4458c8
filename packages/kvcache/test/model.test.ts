/**
 * The cache against a model that keeps lists of ids and a list of free pages: random commands on both, and after each one the books,
 * the pages and every row must agree. The model's free list says which page comes next, so the same trace gives the same pages.
 */
import { ArgumentError, DisposedError, memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import { type KvCache, type Sequence, StateError, type Step } from "../src/index.ts";
import { engines } from "./engines.ts";
import { booksOf, expected, gathered, poisonedCache, writeLayer } from "./fixtures.ts";

const LAYERS = 2;
const PAGE = 3;
const PAGES = 9;

interface ModelSequence {
  ids: number[];
  pages: number[];
  step: ModelStep | undefined;
}
interface ModelStep {
  readonly entries: { readonly sequence: ModelSequence; readonly tokens: number; readonly taken: number }[];
  readonly ids: number[];
  readonly written: Set<number>;
}
interface Model {
  sequences: ModelSequence[];
  steps: ModelStep[];
  free: number[];
  nextId: number;
}
interface Real {
  readonly cache: KvCache;
  readonly sequences: Map<ModelSequence, Sequence>;
  readonly steps: Map<ModelStep, Step>;
  readonly released: Sequence[];
}
type Command = fc.Command<Model, Real>;
const pagesFor = (tokens: number): number => Math.ceil(tokens / PAGE);
const pick = <T>(list: readonly T[], n: number): T | undefined => list[n % list.length];

/** Everything that can be seen of the cache equals the model. */
function agree(m: Model, r: Real): void {
  r.cache.check();
  const tokens = m.sequences.reduce((n, s) => n + s.ids.length, 0);
  expect(r.cache.stats()).toMatchObject({
    totalPages: PAGES,
    freePages: m.free.length,
    usedPages: PAGES - m.free.length,
    tokens,
    sequences: m.sequences.length,
    openSteps: m.steps.length,
  });
  expect(Array.from(booksOf(r.cache).pool.freePages())).toEqual(m.free);
  for (const sequence of m.sequences) {
    const real = r.sequences.get(sequence)!;
    expect(real.length).toBe(sequence.ids.length);
    expect(Array.from(real.pages)).toEqual(sequence.pages);
    expect(Array.from(real.tokenIds)).toEqual(sequence.ids);
  }
  const idle = m.sequences.filter((s) => s.step === undefined);
  using look = r.cache.reserve(idle.map((s) => ({ sequence: r.sequences.get(s)!, tokens: 0 })));
  for (let layer = 0; layer < LAYERS; layer++) {
    idle.forEach((s, n) =>
      expect(gathered(r.cache, look.view(layer), n)).toEqual(expected(r.cache, s.ids, layer)),
    );
    for (const step of m.steps) rowsOfStep(r, step, layer);
  }
}
/** Rows of a layer that the step has written, old and new. */
function rowsOfStep(r: Real, step: ModelStep, layer: number): void {
  if (!step.written.has(layer) && step.ids.length > 0) return;
  let at = 0;
  step.entries.forEach(({ sequence, tokens }, n) => {
    const ids = [...sequence.ids, ...step.ids.slice(at, (at += tokens))];
    expect(gathered(r.cache, r.steps.get(step)!.view(layer), n)).toEqual(expected(r.cache, ids, layer));
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
function cancel(m: Model, step: ModelStep): void {
  for (const { sequence, taken } of step.entries.toReversed()) {
    for (let i = 0; i < taken; i++) m.free.unshift(sequence.pages.pop()!);
    sequence.step = undefined;
  }
  m.steps.splice(m.steps.indexOf(step), 1);
}
function shorten(m: Model, sequence: ModelSequence, length: number): void {
  sequence.ids.length = length;
  while (sequence.pages.length > pagesFor(length)) m.free.push(sequence.pages.pop()!);
}
const open = (): Command =>
  command("open", (m, r) => {
    const sequence: ModelSequence = { ids: [], pages: [], step: undefined };
    m.sequences.push(sequence);
    r.sequences.set(sequence, r.cache.open());
  });
/** A step on both sides, unless it runs out of pages or names a sequence that is in a step: then the error, and no step. */
function begin(m: Model, r: Real, wanted: readonly (readonly [number, number])[]): ModelStep | undefined {
  const requests = new Map<ModelSequence, number>();
  for (const [n, tokens] of wanted) {
    const sequence = pick(m.sequences, n);
    if (sequence !== undefined) requests.set(sequence, tokens);
  }
  const list = [...requests];
  const act = (): Step =>
    r.cache.reserve(list.map(([s, tokens]) => ({ sequence: r.sequences.get(s)!, tokens })));
  const pagesMissing = ([s, tokens]: readonly [ModelSequence, number]): number =>
    pagesFor(s.ids.length + tokens) - s.pages.length;
  if (list.some(([s]) => s.step !== undefined)) return void expect(act).toThrow(StateError);
  if (list.reduce((sum, entry) => sum + pagesMissing(entry), 0) > m.free.length)
    return void expect(act).toThrow(OutOfMemoryError);
  const entries = list.map((entry) => {
    const taken = m.free.splice(0, pagesMissing(entry));
    entry[0].pages.push(...taken);
    return { sequence: entry[0], tokens: entry[1], taken: taken.length };
  });
  const ids = entries.flatMap(({ tokens }) => Array.from({ length: tokens }, () => m.nextId++));
  const step: ModelStep = { entries, ids, written: new Set() };
  for (const { sequence } of entries) sequence.step = step;
  m.steps.push(step);
  r.steps.set(step, act());
  return step;
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
  let at = 0;
  for (const { sequence, tokens } of step.entries) {
    sequence.ids.push(...step.ids.slice(at, (at += tokens)));
    sequence.step = undefined;
  }
  m.steps.splice(m.steps.indexOf(step), 1);
}
type Wanted = readonly (readonly [number, number])[];
const reserve = (wanted: Wanted): Command =>
  command(`reserve ${JSON.stringify(wanted)}`, (m, r) => void begin(m, r, wanted));
/** A whole step at once. */
const appendTokens = (wanted: Wanted): Command =>
  command(`append ${JSON.stringify(wanted)}`, (m, r) => {
    const step = begin(m, r, wanted);
    if (step === undefined) return;
    for (let layer = 0; layer < LAYERS; layer++) writeStep(r, step, layer);
    finish(m, r, step);
  });
const write = (n: number, layer: number): Command =>
  command(`write ${n} layer ${layer}`, (m, r) => {
    const step = pick(m.steps, n);
    if (step !== undefined) writeStep(r, step, layer);
  });
const commit = (n: number): Command =>
  command(`commit ${n}`, (m, r) => {
    const step = pick(m.steps, n);
    if (step !== undefined) finish(m, r, step);
  });
const cancelStep = (n: number): Command =>
  command(`cancel ${n}`, (m, r) => {
    const step = pick(m.steps, n);
    if (step === undefined) return;
    r.steps.get(step)!.cancel();
    cancel(m, step);
    expect(() => r.steps.get(step)!.cancel()).toThrow(StateError);
  });
const truncate = (n: number, share: number): Command =>
  command(`truncate ${n} to ${share}`, (m, r) => {
    const sequence = pick(m.sequences, n);
    if (sequence === undefined) return;
    const real = r.sequences.get(sequence)!;
    const length = Math.round(share * (sequence.ids.length + 1)); // up to one beyond the end
    const act = (): void => real.truncate(length);
    if (sequence.step !== undefined) expect(act).toThrow(StateError);
    else if (length > sequence.ids.length) expect(act).toThrow(ArgumentError);
    else {
      act();
      shorten(m, sequence, length);
    }
  });
const release = (n: number): Command =>
  command(`release ${n}`, (m, r) => {
    const sequence = pick(m.sequences, n);
    if (sequence === undefined) return;
    const real = r.sequences.get(sequence)!;
    if (sequence.step !== undefined) return void expect(() => real.release()).toThrow(StateError);
    real.release();
    shorten(m, sequence, 0);
    m.sequences.splice(m.sequences.indexOf(sequence), 1);
    r.released.push(real);
  });
const dispose = (n: number): Command =>
  command(`dispose ${n}`, (m, r) => {
    const sequence = pick(m.sequences, n);
    if (sequence === undefined) return;
    if (sequence.step !== undefined) cancel(m, sequence.step);
    r.sequences.get(sequence)![Symbol.dispose]();
    shorten(m, sequence, 0);
    m.sequences.splice(m.sequences.indexOf(sequence), 1);
    r.released.push(r.sequences.get(sequence)!);
  });
const useReleased = (n: number): Command =>
  command(`use released ${n}`, (_, r) => {
    const sequence = pick(r.released, n);
    if (sequence === undefined) return;
    sequence[Symbol.dispose]();
    expect(() => sequence.release()).toThrow(DisposedError);
    expect(() => r.cache.reserve([{ sequence, tokens: 1 }])).toThrow(DisposedError);
  });

const n = fc.nat({ max: 5 });
const layer = fc.nat({ max: LAYERS - 1 });
const wanted = fc.array(fc.tuple(n, fc.nat({ max: 8 })), { minLength: 1, maxLength: 3 });
const often = (times: number, arbitrary: fc.Arbitrary<Command>): fc.Arbitrary<Command>[] =>
  new Array(times).fill(arbitrary);
const commands = fc.commands(
  [
    ...often(2, fc.constant(open())),
    ...often(4, wanted.map(appendTokens)),
    ...often(2, wanted.map(reserve)),
    ...often(
      3,
      fc.tuple(n, layer).map(([at, of]) => write(at, of)),
    ),
    ...often(2, n.map(commit)),
    n.map(cancelStep),
    ...often(
      2,
      fc.tuple(n, fc.double({ min: 0, max: 1, noNaN: true })).map(([at, share]) => truncate(at, share)),
    ),
    n.map(release),
    n.map(dispose),
    n.map(useReleased),
  ],
  { maxCommands: 80, size: "max" }, // the default size stops at about ten
);
function runTrace(trace: Iterable<Command>, engine: string): void {
  using cache = poisonedCache({ engine, layers: LAYERS, pageSize: PAGE, maxPages: PAGES, numKvHeads: 1 });
  const model: Model = {
    sequences: [],
    steps: [],
    free: Array.from({ length: PAGES }, (_, i) => i + 1),
    nextId: 0,
  };
  const real: Real = { cache, sequences: new Map(), steps: new Map(), released: [] };
  fc.modelRun(() => ({ model, real }), trace);
}

test.each(engines)(
  "any trace of commands on %s leaves the cache as the model says, and disposal frees everything",
  (engine) => {
    const before = memoryUsage();
    fc.assert(
      fc.property(commands, (trace) => runTrace(trace, engine)),
      { numRuns: 150 },
    );
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
  },
);
