// The test command: structure, types, format, lint, then every test; ends with one line of counts.
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const bun = process.execPath;
const CHECKS: readonly (readonly [name: string, ...command: string[]])[] = [
  ["imports and sizes", bun, "tools/check-imports.ts"],
  ["types", bun, "check"],
  ["format", bun, "fmt", "--check", "packages", "tools", "docs"],
  ["lint", bun, "node_modules/oxlint/bin/oxlint", "--config", ".oxlintrc.json", "packages", "tools", "docs"],
];
const counts = { passed: 0, failed: 0, skipped: 0 };

for (const [name, ...command] of CHECKS) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], {
    cwd: root,
    env: { ...process.env, NO_COLOR: "1" },
  });
  console.log(`${exitCode === 0 ? "ok    " : "FAILED"} ${name}`);
  if (exitCode === 0) counts.passed++;
  else {
    counts.failed++;
    console.log(`${stdout.toString()}${stderr.toString()}`);
  }
}

/** Adds up the counts of `bun test`, which reports on stderr; a run without a summary has crashed and counts as failed. */
function addUp(report: string, exitCode: number): void {
  const count = (word: string): number =>
    Number(new RegExp(`^\\s*(\\d+) ${word}$`, "m").exec(report)?.[1] ?? 0);
  const [passed, failed] = [count("pass"), count("fail")];
  counts.passed += passed;
  counts.skipped += count("skip");
  // Errors outside tests (a file that does not load) make bun exit with 1 while no test failed.
  counts.failed += failed > 0 || exitCode === 0 ? failed : 1;
}
// Bun 1.4.5 does not heed bunfig.toml's timeout, and its default of 5 s is short on busy cores.
const TIMEOUT_MS = "30000";
const filters = process.argv.slice(2);
const tests = Bun.spawn([bun, "test", "--parallel", "--dots", "--timeout", TIMEOUT_MS, ...filters], {
  cwd: root,
  env: { ...process.env, NO_COLOR: "1" },
  stdio: ["ignore", "inherit", "pipe"],
});
let report = "";
const decoder = new TextDecoder();
for await (const chunk of tests.stderr) {
  process.stderr.write(chunk);
  report += decoder.decode(chunk, { stream: true });
}
addUp(report, await tests.exited);
if (counts.passed <= CHECKS.length) counts.failed ||= 1; // nothing ran
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed === 0 ? 0 : 1);
