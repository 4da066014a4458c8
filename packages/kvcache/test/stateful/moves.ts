/** The commands that are done at once. */
import { StateError } from "../../src/index.ts";
import { layoutOf } from "../fixtures.ts";
import { must, mustThrow } from "./checks.ts";
import { type Command, NO_FAULT, OWNERS } from "./commands.ts";
import { chain, planesOf, writeRows } from "./rows.ts";
import type { Member, OpenStep, World } from "./world.ts";

/** A new sequence that starts empty; one in three of them soon counts as unimportant, or important. */
export function open(world: World, { who }: Command): void {
  const owner = who % OWNERS.length;
  const priority = [undefined, 0, 100][who % 3];
  const expires = who % 2 === 0 ? world.clock + 20 : undefined;
  const sequence = world.cache.open({ ...OWNERS[owner], priority, expires });
  world.add(sequence, { owner, seed: world.seedOf(owner), ids: [], peak: 0, matched: 0 });
}
/** Looks for what a sequence has, or had, and more; goes on from there, or drops it. */
export function match(world: World, { op, who, ids, fault }: Command): void {
  const m = world.pick(who);
  const known: readonly (readonly [number, readonly number[]])[] = m
    ? [...world.past, [m.owner, m.ids], [m.owner, m.ids]]
    : world.past;
  const [found, start] = known[(who + fault) % known.length] ?? [0, []];
  const owner = ids.length === 1 ? who % OWNERS.length : found;
  const wanted = [...start, ...ids];
  const match = world.cache.match(wanted, { ...OWNERS[owner], partial: op === "partial" });
  const { length } = match;
  must(length < wanted.length, `all ${wanted.length} ids were found, which leaves nothing to compute`);
  must(
    op === "partial" || length % world.cache.layout.blockTokens === 0,
    `${length} ids are no whole blocks`,
  );
  world.cache.check();
  if (fault < 4) {
    match[Symbol.dispose]();
    world.coverage.add("matches dropped");
    return;
  }
  if (length > 0) world.coverage.add(op === "partial" ? "partial hits" : "hits");
  const sequence = world.cache.open({ match });
  const begun = wanted.slice(0, length);
  world.add(sequence, { owner, seed: world.seedOf(owner), ids: begun, peak: length, matched: length });
}
/** Opens a step of up to three sequences. */
export function begin(world: World, { who, ids, fault }: Command): OpenStep | undefined {
  const all = [who, who + 1, who + 2].slice(0, 1 + (ids.length % 3)).map((n) => world.pick(n)!);
  const free = [...new Set(all)].filter(
    (m) => m !== undefined && m.away === undefined && m.step === undefined,
  );
  const parts = free.map((m, i) => [m, i === 0 ? ids : ids.slice(0, 1)] as const);
  const requests = parts.map(([m, list]) => ({ sequence: m.sequence, tokens: list.length }));
  const before = new Map(free.map((m) => [m, tails(world, m)]));
  const step = world.attempt(fault, () => world.cache.reserve(requests));
  if (step === undefined) return undefined;
  for (const m of free) if (tails(world, m) !== before.get(m)) world.coverage.add("copies on write");
  const open = { step, parts };
  for (const [m] of parts) m.step = open;
  world.steps.push(open);
  return open;
}
/** The pages that a sequence's committed tokens are on. */
function tails({ cache }: World, { sequence, ids }: Member): string {
  return cache.layout.groups
    .map(({ pageSize }, g) =>
      sequence
        .pagesOf(g)
        .slice(0, Math.ceil(ids.length / pageSize))
        .join(),
    )
    .join(";");
}
/** Writes the first layers of a step; whether it could. */
function write(world: World, { step, parts }: OpenStep, layers: number, fault: number): boolean {
  const values = parts.flatMap(([m, ids]) => chain(m.seed, [...m.ids, ...ids]).slice(m.ids.length));
  const done = world.attempt(fault, () => {
    for (let layer = 0; layer < layers; layer++) writeRows(world.cache, step, values, layer);
    return true;
  });
  return done ?? false;
}
/** Writes all layers and commits; a step that cannot be written is cancelled, or written again from the start. */
export function finish(world: World, open: OpenStep, { who, fault }: Command): void {
  const { layers } = world.cache.layout;
  const written = write(world, open, layers, fault);
  if (!written && who % 2 === 0) return cancel(world, open);
  if (!written) must(write(world, open, layers, Infinity), "a step cannot be written again");
  commit(world, open, fault);
  for (const [m, ids] of open.parts) {
    const before = m.ids.length;
    m.peak = Math.max(m.peak, m.ids.push(...ids));
    world.published.commit(m.owner, m.ids, before);
  }
  end(world, open);
}
/** Commits; where encoding fails the step stays open, and nothing has changed. */
function commit(world: World, { step, parts }: OpenStep, fault: number): void {
  const ids = parts.flatMap(([, list]) => list);
  const done = world.attempt(fault, () => (step.commit(ids), true));
  if (done === undefined) {
    must(step.isOpen, "a commit that failed has closed the step");
    world.cache.check();
    world.coverage.add("commits that failed");
    step.commit(ids);
  }
  world.coverage.add("commits");
}
function cancel(world: World, open: OpenStep): void {
  open.step.cancel();
  world.coverage.add("cancelled steps");
  end(world, open);
}
function end(world: World, open: OpenStep): void {
  for (const [m] of open.parts) m.step = undefined;
  world.steps = world.steps.filter((other) => other !== open);
}
/** Goes on with an open step: ends it, or leaves it with some layers written, which cannot be committed. */
export function proceed(world: World, command: Command): void {
  const open = world.steps[command.who % world.steps.length];
  if (open === undefined) return;
  if (command.op === "commit") return finish(world, open, command);
  write(world, open, command.ids.length % world.cache.layout.layers, Infinity);
  if (command.op === "cancel") return cancel(world, open);
  const ids = open.parts.flatMap(([, list]) => list);
  if (ids.length === 0) return;
  mustThrow(() => open.step.commit(ids), StateError);
}
export function fork(world: World, m: Member, { ids }: Command): void {
  for (const sequence of m.sequence.fork(1 + (ids.length % 2))) world.add(sequence, m);
  world.coverage.add("forks");
}
/** Cuts off some tokens, or all; where a window has gone on, or pages are encoded, it says so. */
export function truncate(world: World, m: Member, { who, ids }: Command): void {
  const length = who === 0 ? 0 : Math.max(0, m.ids.length - ids.length);
  try {
    m.sequence.truncate(length);
  } catch (error) {
    const { groups, draftMargin } = world.cache.layout;
    const isFound = length < m.matched && groups.some(({ dtype }) => dtype === "int4");
    if ((length >= m.peak - draftMargin && !isFound) || !(error instanceof StateError)) throw error;
    world.coverage.add("refusals to go back");
    return;
  }
  if (length < m.ids.length) world.coverage.add("truncations");
  m.ids.length = length;
}
export function release(world: World, m: Member): void {
  m.sequence.release();
  world.remove(m);
  world.coverage.add("releases");
}
export function fence(world: World, m: Member, { fault }: Command): void {
  const until = fault < NO_FAULT ? world.clock + fault : Infinity;
  const pages = world.cache.layout.groups.map((_, g) => world.namesOf(m.sequence, g));
  const fence = world.cache.fence([m.step?.step ?? m.sequence], { done: () => world.clock >= until });
  world.fences.push({ fence, until, pages, values: chain(m.seed, m.ids) });
}
/** Ends the oldest fence, under which every row is still there. */
export function lift(world: World): void {
  const open = world.fences.shift();
  if (open === undefined) return;
  if (open.until > world.clock) {
    using look = world.cache.reserve([]);
    for (let layer = 0; layer < world.cache.layout.layers; layer++) {
      const group = world.cache.layout.groups.indexOf(layoutOf(world.cache, layer));
      world.sameRows(layer, planesOf(look.view(layer)), open.pages[group]!, open.values);
    }
    world.coverage.add("fences");
  }
  open.fence[Symbol.dispose]();
}
/** Ends an epoch, of an adapter or of all. */
export function invalidate(world: World, { who }: Command): void {
  const adapter = who % 3 === 0 ? undefined : "a";
  world.cache.invalidate({ adapter });
  OWNERS.forEach((owner, n) => {
    if (adapter === undefined || owner.adapter === adapter) world.epochs[n]!++;
  });
  world.savedBlocks = undefined;
  if (world.saved?.seed !== world.seedOf(world.saved?.owner ?? 0)) world.saved = undefined;
}
/** Starts anew: refused while anything is open, so that one time in two all is let go first. */
export function reset(world: World, { who }: Command): void {
  if (who % 2 === 0) {
    for (const open of world.steps) cancel(world, open);
    while (world.fences.length > 0) lift(world);
    for (const m of world.members) release(world, m);
  }
  const fences = world.fences.filter(({ until }) => until > world.clock).length;
  if (world.members.length + world.steps.length + fences > 0)
    return mustThrow(() => world.cache.reset(), StateError);
  world.cache.reset();
  world.fences = [];
  world.coverage.add("resets");
}
