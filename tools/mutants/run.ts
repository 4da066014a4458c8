import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Mutant, mutate } from "./mutant.ts";
import type { Workspace } from "./workspace.ts";

/** What the tests said. */
export type Outcome =
  | { readonly kind: "passed" }
  | { readonly kind: "failed"; readonly test: string; readonly output: string } // the first test that failed
  | { readonly kind: "endless" } // did not end in time
  | { readonly kind: "broken"; readonly output: string }; // failed without a test that did, or did not load

const TEST_MS = 60_000; // the slowest test takes 3 s on an idle core
const LIMIT_MS = 120_000;

/** Runs test files of the cache in a workspace, up to the first failure. */
export async function runTests(workspace: Workspace, tests: readonly string[]): Promise<Outcome> {
  const files = tests.map((name) => `./packages/kvcache/test/${name}.test.ts`);
  const run = Bun.spawn([process.execPath, "test", "--bail", "--timeout", String(TEST_MS), ...files], {
    cwd: workspace.path,
    env: { ...process.env, NO_COLOR: "1" },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: LIMIT_MS,
    killSignal: "SIGKILL",
  });
  const [out, report] = await Promise.all([run.stdout.text(), run.stderr.text(), run.exited]);
  if (run.signalCode === "SIGKILL" || report.includes("this test timed out after"))
    return { kind: "endless" };
  const test = /^\(fail\) (.*?)(?: \[[\d.]+m?s\])?$/m.exec(report)?.[1];
  const output = `${out}${report}`;
  if (test !== undefined && !report.includes("Unhandled error between tests"))
    return { kind: "failed", test, output };
  if (run.exitCode === 0 && /^ *[1-9]\d* pass$/m.test(report)) return { kind: "passed" };
  return { kind: "broken", output };
}
/** Puts a bug into a workspace, runs the tests that should notice, and takes it out again. Throws when it has no place there. */
export async function tryMutant(workspace: Workspace, mutant: Mutant): Promise<Outcome> {
  const path = join(workspace.path, mutant.file);
  const source = readFileSync(path, "utf8");
  writeFileSync(path, mutate(source, mutant));
  try {
    return await runTests(workspace, mutant.tests);
  } finally {
    writeFileSync(path, source);
  }
}
