/** Runs commands one after the other; after each the cache must be as its model says. */
import type { Command } from "./commands.ts";
import * as moves from "./moves.ts";
import * as transfers from "./transfers.ts";
import type { Member, World } from "./world.ts";

/** Does a command, if it means something now. Throws when the cache does what it must not. */
export async function apply(world: World, command: Command): Promise<void> {
  world.clock++;
  switch (command.op) {
    case "open":
      return moves.open(world, command);
    case "match":
    case "partial":
      return moves.match(world, command);
    case "append": {
      const begun = moves.begin(world, command);
      return begun && moves.finish(world, begun, command);
    }
    case "begin":
      return void moves.begin(world, command);
    case "commit":
    case "cancel":
    case "early":
      return moves.proceed(world, command);
    case "lift":
      return moves.lift(world);
    case "invalidate":
      return moves.invalidate(world, command);
    case "reset":
      return moves.reset(world, command);
    case "load":
      return transfers.load(world);
    case "damage":
      return transfers.damage(world, command);
    case "savePrefixes":
      return transfers.savePrefixes(world, command);
    case "loadPrefixes":
    case "damagePrefixes":
      return transfers.loadPrefixes(world, command);
    default: {
      const m = world.pick(command.who);
      if (m?.step === undefined) return m && applyTo(world, m, command);
      if (command.op === "fence") moves.fence(world, m, command); // by its step
    }
  }
}
/** Does what is done to one sequence. */
async function applyTo(world: World, m: Member, command: Command): Promise<void> {
  const { op, fault } = command;
  if (op === "release") return moves.release(world, m);
  if (op === "leave") return transfers.leave(world, m, command);
  if (op === "rot") return transfers.rot(world, m, command);
  if (op === "swapIn" && m.away !== undefined) {
    await transfers.swapIn(world, m, fault);
    return transfers.tidy(world);
  }
  if (m.away !== undefined) return transfers.refuse(world, m);
  if (op === "fork") moves.fork(world, m, command);
  else if (op === "truncate") moves.truncate(world, m, command);
  else if (op === "fence") moves.fence(world, m, command);
  else if (op === "swapOut") await transfers.swapOut(world, m, command);
  else if (op === "save") await transfers.save(world, m, command);
}
/** Does a command and compares all there is to see. */
export async function step(world: World, command: Command): Promise<void> {
  await apply(world, command);
  await world.rest();
  world.agree();
}
