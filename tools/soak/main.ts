// A long random life of key/value caches beside the model of packages/kvcache/test/stateful; see arguments.ts.
import "@heed/engine-cpu";
import { memoryUsage } from "@heed/tensor";
import { createRng, type Rng } from "@heed/testkit";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Coverage } from "../../packages/kvcache/test/stateful/checks.ts";
import {
  type Command,
  MAX_FAULT,
  MAX_IDS,
  MAX_WHO,
  OPS,
  SETUPS,
} from "../../packages/kvcache/test/stateful/commands.ts";
import { step } from "../../packages/kvcache/test/stateful/run.ts";
import { World } from "../../packages/kvcache/test/stateful/world.ts";
import { parseArguments, type SoakArguments, usage } from "./arguments.ts";

const SHOWN = 8; // commands before the one that failed

/** The next command. */
function draw(rng: Rng): Command {
  return {
    op: OPS[rng.int(0, OPS.length - 1)]!,
    who: rng.int(0, MAX_WHO),
    ids: Array.from({ length: rng.int(1, MAX_IDS) }, () => rng.int(0, 1)),
    fault: rng.int(1, MAX_FAULT),
  };
}
/** Runs commands `from` .. `to` - 1 on one cache. Throws what is wrong, with the command's number. */
async function turn(
  world: World,
  rng: Rng,
  from: number,
  to: number,
  report: (n: number) => void,
): Promise<void> {
  const last: string[] = [];
  for (let n = from; n < to; n++) {
    const command = draw(rng);
    last.push(`${n} ${JSON.stringify(command)}`);
    if (last.length > SHOWN) last.shift();
    try {
      await step(world, command);
    } catch (error) {
      throw new Error(`command ${n} went wrong; the last ones were\n  ${last.join("\n  ")}`, {
        cause: error,
      });
    }
    report(n + 1);
  }
}
async function soak(args: SoakArguments, folder: string, coverage: Coverage): Promise<void> {
  const rng = createRng(args.seed);
  const before = memoryUsage();
  const start = performance.now();
  let shown = start;
  const report = (done: number): void => {
    const now = performance.now();
    if (now - shown < 10_000 && done < args.commands) return;
    shown = now;
    const rate = (done - args.from) / ((now - start) / 1000);
    console.log(`${done} of ${args.commands} commands, ${rate.toFixed(0)} a second`);
  };
  for (let from = 0, n = 0; from < args.commands; from += args.turn, n++) {
    const setup = args.setup ?? n % SETUPS.length;
    if (from + args.turn <= args.from) {
      for (let i = 0; i < args.turn; i++) draw(rng); // what comes next depends on the numbers drawn before, not on the cache
      continue;
    }
    await using world = new World(setup, args.engine, join(folder, `${n}`), coverage);
    await turn(world, rng, from, Math.min(args.commands, from + args.turn), report);
  }
  const after = memoryUsage();
  if (after.bytes !== before.bytes || after.storages !== before.storages)
    throw new Error(`${after.bytes - before.bytes} bytes were not freed`);
}
function summary({ counts }: Coverage): string {
  const lines = [...counts].toSorted(([a], [b]) => (a < b ? -1 : 1));
  return lines.map(([what, times]) => `  ${String(times).padStart(10)}  ${what}`).join("\n");
}
async function main(args: SoakArguments): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), "heed-soak-"));
  const coverage = new Coverage();
  const again = `bun run soak --commands ${args.commands} --seed ${args.seed} --turn ${args.turn} --engine ${args.engine}`;
  const command = args.setup === undefined ? again : `${again} --setup ${args.setup}`;
  console.log(command);
  try {
    await soak(args, folder, coverage);
    console.log(`${summary(coverage)}\n${args.commands} commands: every one as it should be`);
    return 0;
  } catch (error) {
    console.error(error);
    console.error(`${summary(coverage)}\nFAILED; to see it again: ${command}`);
    return 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  let args: SoakArguments;
  try {
    args = parseArguments(process.argv.slice(2));
    if (args.setup !== undefined && args.setup >= SETUPS.length)
      throw new TypeError(`--setup must be below ${SETUPS.length}; got ${args.setup}`);
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${usage}`);
    process.exit(2);
  }
  if (args.help) console.log(usage);
  else process.exit(await main(args));
}
