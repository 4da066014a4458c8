// Puts known bugs of key/value caches into copies of the sources, one at a time, and says which test notices each.
import { availableParallelism } from "node:os";
import { allMutants } from "./all.ts";
import type { Mutant } from "./mutant.ts";
import { type Outcome, runTests, tryMutant } from "./run.ts";
import { Workspace } from "./workspace.ts";

const usage = `bun run mutants [WORD ...]

Tries each bug of tools/mutants whose name or file contains one of the words, or all of them. Ends with 1 when one was not
noticed, with 2 when one cannot be tried. The working tree is only read.`;

interface Verdict {
  readonly mutant: Mutant;
  readonly outcome: Outcome;
}
/** Calls `work` for every item, by as many workers as there are workspaces. */
async function share<Item>(
  workspaces: readonly Workspace[],
  items: readonly Item[],
  work: (workspace: Workspace, item: Item) => Promise<void>,
): Promise<void> {
  const rest = [...items];
  await Promise.all(
    workspaces.map(async (workspace) => {
      for (let item = rest.shift(); item !== undefined; item = rest.shift()) await work(workspace, item);
    }),
  );
}
/** A bug is noticed by a test only if the test passes without it. */
async function requirePassing(workspaces: readonly Workspace[], mutants: readonly Mutant[]): Promise<void> {
  await share(workspaces, [...new Set(mutants.flatMap(({ tests }) => tests))], async (workspace, test) => {
    const outcome = await runTests(workspace, [test]);
    if (outcome.kind === "passed") return;
    const output = "output" in outcome ? outcome.output : "";
    throw new Error(`${test} fails without any bug: ${text(outcome)}\n${output}`);
  });
}
function text(outcome: Outcome): string {
  if (outcome.kind === "failed") return outcome.test;
  if (outcome.kind === "passed") return "SURVIVED";
  if (outcome.kind === "endless") return "(the tests did not end)";
  return `BROKEN: ${outcome.output.trim().split("\n").slice(0, 12).join("\n  ")}`;
}
function table(verdicts: readonly Verdict[]): string {
  const width = Math.max(...verdicts.map(({ mutant }) => mutant.bug.length));
  return verdicts
    .map(({ mutant, outcome }) => `${mutant.origin.padEnd(7)}  ${mutant.bug.padEnd(width)}  ${text(outcome)}`)
    .join("\n");
}
async function main(words: readonly string[]): Promise<number> {
  const mutants = allMutants.filter(
    ({ bug, file }) => words.length === 0 || words.some((word) => `${bug} ${file}`.includes(word)),
  );
  if (mutants.length === 0) {
    console.error(`no bug contains ${words.join(" or ")}\n\n${usage}`);
    return 2;
  }
  const begin = performance.now();
  using stack = new DisposableStack();
  const workers = Math.min(mutants.length, availableParallelism(), 4);
  const workspaces = Array.from({ length: workers }, () => stack.use(new Workspace()));
  console.error(`${mutants.length} bugs, ${workers} at a time; first the tests without any`);
  await requirePassing(workspaces, mutants);
  const outcomes = new Map<Mutant, Outcome>();
  await share(workspaces, mutants, async (workspace, mutant) => {
    const outcome = await tryMutant(workspace, mutant);
    outcomes.set(mutant, outcome);
    console.error(`${outcomes.size}/${mutants.length}  ${mutant.bug}: ${outcome.kind}`);
  });
  const verdicts = mutants.map((mutant) => ({ mutant, outcome: outcomes.get(mutant)! }));
  const count = (...kinds: Outcome["kind"][]): number =>
    verdicts.filter(({ outcome }) => kinds.includes(outcome.kind)).length;
  const seconds = Math.round((performance.now() - begin) / 1000);
  const [caught, survived, broken] = [count("failed", "endless"), count("passed"), count("broken")];
  console.log(`${table(verdicts)}\n\n${caught} caught, ${survived} survived, ${broken} broken, ${seconds} s`);
  if (broken > 0) return 2;
  return survived > 0 ? 1 : 0;
}

if (import.meta.main) {
  const words = process.argv.slice(2);
  if (words.includes("--help")) console.log(usage);
  else {
    process.exitCode = await main(words).catch((error: unknown) => {
      console.error((error as Error).message);
      return 2;
    });
  }
}
