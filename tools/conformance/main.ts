import "@heed/engine-cpu";
import "@heed/engine-cuda";
import { engineNames, getEngine } from "@heed/tensor";
import type { Engine } from "@heed/tensor";
import { parseArguments, usage } from "./arguments.ts";
import type { ConformanceArguments } from "./arguments.ts";
import { discover } from "./discover.ts";
import type { BrokenSet, ConformanceSet } from "./discover.ts";
import { count, json, summary, table } from "./report.ts";
import { runSets } from "./run.ts";
import { runByLibrary } from "./runners.ts";

/** A command line that cannot be followed: exit code 2, its words and the usage. */
class UsageError extends Error {}

function readArguments(args: readonly string[]): ConformanceArguments {
  try {
    return parseArguments(args);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function findSets({ folder }: ConformanceArguments): (ConformanceSet | BrokenSet)[] {
  let sets: (ConformanceSet | BrokenSet)[];
  try {
    sets = discover(folder);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  if (sets.length === 0)
    throw new UsageError(`no .json manifest with a .safetensors file beside it in "${folder}"`);
  return sets;
}

function findEngine({ engine }: ConformanceArguments): Engine {
  if (engineNames().includes(engine)) return getEngine(engine);
  throw new UsageError(`there is no engine "${engine}"; there are ${engineNames().join(", ")}`);
}

async function main(args: ConformanceArguments): Promise<number> {
  const sets = findSets(args);
  const engine = findEngine(args);
  const results = await runSets(sets, runByLibrary, engine, args.filter);
  if (results.length === 0) throw new UsageError(`no case has "${args.filter}" in "set/case"`);
  if (args.json) {
    console.log(json(results, engine));
    console.error(summary(results));
  } else {
    console.log(`engine ${engine.name}: ${engine.description}\n\n${table(results)}`);
  }
  const { failed, skipped } = count(results);
  return failed + skipped === 0 ? 0 : 1;
}

try {
  const args = readArguments(process.argv.slice(2));
  if (args.help) console.log(usage);
  else process.exitCode = await main(args);
} catch (error) {
  const isUsage = error instanceof UsageError;
  console.error(
    isUsage
      ? `${error.message}\n\n${usage}`
      : error instanceof Error
        ? `${error.name}: ${error.message}`
        : error,
  );
  process.exitCode = isUsage ? 2 : 1;
}
