/** The commands that move pages to tiers and files and back, with failures of the system and damage on the way. */
import { DisposedError, OutOfMemoryError } from "@heed/tensor";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PageFileError, StateError } from "../../src/index.ts";
import { must, mustThrow } from "./checks.ts";
import { type Command, NO_FAULT, OWNERS } from "./commands.ts";
import type { Member, World } from "./world.ts";

/** Awaits what may fail for lack of pages or space, or since the n-th call into the system does; undefined when it has. */
async function settle<T>(world: World, fault: number, act: () => Promise<T>): Promise<T | undefined> {
  world.files.arm(fault < NO_FAULT ? fault : Infinity);
  try {
    return await act();
  } catch (error) {
    const injected = error instanceof PageFileError && error.reason === "io" && world.files.fired();
    if (!injected && !(error instanceof OutOfMemoryError)) throw error;
    world.coverage.add(injected ? "file faults" : "transfers without room");
    return undefined;
  } finally {
    world.files.arm(Infinity);
  }
}
const DONE = async (work: Promise<void>): Promise<true> => (await work, true);

export async function swapOut(world: World, m: Member, { who, fault }: Command): Promise<void> {
  const tier = who % 4 > 0 ? world.host : await world.tier();
  if (await settle(world, fault, () => DONE(world.cache.swapOut(m.sequence, tier)))) {
    m.away = tier;
    world.coverage.add("swapped out");
  }
}
export async function swapIn(world: World, m: Member, fault: number): Promise<void> {
  if (!(await settle(world, fault, () => DONE(world.cache.swapIn(m.sequence))))) return;
  m.away = undefined;
  world.coverage.add("swapped in");
}
/** Entries stay whose removal failed; with nobody away they are forgotten. */
export async function tidy(world: World): Promise<void> {
  const tier = await world.tier();
  if (world.members.some(({ away }) => away === tier)) return;
  for (const key of tier.keys) await tier.drop(key);
}
/** Releases a sequence whose pages are on their way. */
export async function leave(world: World, m: Member, { who }: Command): Promise<void> {
  const tier = who % 4 > 0 ? world.host : await world.tier();
  const work = m.away ? world.cache.swapIn(m.sequence) : world.cache.swapOut(m.sequence, tier);
  const outcome = work.then(
    () => undefined,
    (error: unknown) => error,
  );
  m.sequence.release();
  world.remove(m);
  world.cache.check();
  const error = await outcome;
  must(error instanceof DisposedError || error instanceof OutOfMemoryError, `released on its way: ${error}`);
  world.coverage.add("released on their way");
}
/** What cannot be done to a sequence that is away. */
export function refuse({ cache }: World, { sequence }: Member): void {
  mustThrow(() => sequence.fork(), StateError);
  mustThrow(() => sequence.truncate(0), StateError);
  mustThrow(() => cache.fence([sequence]), StateError);
  mustThrow(() => cache.reserve([{ sequence, tokens: 1 }]), StateError);
}
function flip(path: string, bit: number): void {
  const bytes = readFileSync(path);
  bytes[Math.floor(bit / 8) % bytes.length]! ^= 1 << (bit % 8);
  writeFileSync(path, bytes);
}
/** A bit of a file, of those that a command can name. */
const bitOf = ({ who, fault }: Command): number => (who * 37 + fault) * 7919;

/** Damages what a folder holds: nothing of it comes back until it is mended. */
export async function rot(world: World, m: Member, command: Command): Promise<void> {
  const tier = await world.tier();
  if (m.away !== tier) return;
  const paths = readdirSync(tier.path).map((name) => join(tier.path, name));
  for (const path of paths) flip(path, bitOf(command));
  const error = await world.cache.swapIn(m.sequence).catch((reason: unknown) => reason);
  must(error instanceof PageFileError || error instanceof OutOfMemoryError, `damage was not seen: ${error}`);
  world.coverage.add("damaged entries");
  for (const path of paths) flip(path, bitOf(command));
  world.agree();
  await swapIn(world, m, Infinity);
}
export async function save(world: World, m: Member, { fault }: Command): Promise<void> {
  if (m.seed !== world.seedOf(m.owner)) return;
  if (fault < 3) {
    const error = await world.cache
      .save(m.sequence, world.file("none/saved"))
      .catch((reason: unknown) => reason);
    return must(error instanceof PageFileError, `saved where there is no folder: ${error}`);
  }
  await world.cache.save(m.sequence, world.file("saved"));
  world.saved = { owner: m.owner, seed: m.seed, ids: [...m.ids], peak: m.peak, matched: m.matched };
  world.coverage.add("saves");
}
export async function load(world: World): Promise<void> {
  const { saved } = world;
  if (saved === undefined) return;
  const sequence = await settle(world, Infinity, () =>
    world.cache.load(world.file("saved"), OWNERS[saved.owner]!),
  );
  if (sequence === undefined) return;
  world.add(sequence, saved);
  world.published.commit(saved.owner, saved.ids, 0);
  world.coverage.add("loads");
}
/** A damaged copy of what was saved is refused, and nothing has changed. */
export async function damage(world: World, command: Command): Promise<void> {
  if (world.saved === undefined) return;
  const path = world.file("damaged");
  writeFileSync(path, readFileSync(world.file("saved")));
  flip(path, bitOf(command));
  const error = await world.cache.load(path).catch((reason: unknown) => reason);
  must(error instanceof PageFileError || error instanceof OutOfMemoryError, `damage was not seen: ${error}`);
  world.coverage.add("damaged files");
}
export async function savePrefixes(world: World, { fault }: Command): Promise<void> {
  if (fault < 3) {
    const path = world.file("none/prefixes");
    const error = await world.cache.savePrefixes(path).catch((reason: unknown) => reason);
    return must(error instanceof PageFileError, `saved where there is no folder: ${error}`);
  }
  const blocks = await world.cache.savePrefixes(world.file("prefixes"));
  must(blocks === world.cache.prefixes().length, `${blocks} blocks were saved`);
  world.savedBlocks = blocks;
  if (blocks > 0) world.coverage.add("saves of prefixes");
}
/** Loads what was saved of the index, or a damaged copy: every block is accounted for, and what can be found is right. */
export async function loadPrefixes(world: World, command: Command): Promise<void> {
  if (world.savedBlocks === undefined) return;
  let path = world.file("prefixes");
  const damaged = command.op === "damagePrefixes";
  if (damaged) {
    const bytes = readFileSync(path);
    writeFileSync((path = world.file("damaged")), bytes);
    flip(path, bitOf(command));
  }
  try {
    const report = await world.cache.loadPrefixes(path);
    const { loaded, known, damaged: lost, skipped } = report;
    must(loaded + known + lost + skipped === world.savedBlocks, `not every block: ${JSON.stringify(report)}`);
    must(damaged || lost === 0, `${lost} blocks of a good file were lost`);
    world.coverage.add("blocks loaded", loaded);
    world.coverage.add("damaged blocks", lost);
  } catch (error) {
    if (!damaged || !(error instanceof PageFileError)) throw error;
    world.coverage.add("damaged indexes");
  }
}
