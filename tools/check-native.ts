/**
 * Builds the native libraries with their tests from source and checks both: `bun run test:native`. Every test of libheed_cpu loops over
 * the levels this processor has; levels it lacks are counted as skipped. cuda/check.ts has what is checked of the CUDA engine. Ends in
 * `N passed, M failed, K skipped`.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { sourceHash, type Manifest } from "../packages/engine-cpu/native/manifest.ts";
import { checkCuda } from "./cuda/check.ts";
import { GLIBC_CEILING, inspect, requirements } from "./native/elf.ts";
import { Tally } from "./native/tally.ts";
import { build, BUILD, LIBRARY, ROOT } from "./native/toolchain.ts";

const LEVELS = ["v2", "v3", "v4"] as const;
const MANIFEST = join(ROOT, "packages/engine-cpu/prebuilt/linux-x64/manifest.json");

async function checkLibrary(tally: Tally): Promise<void> {
  for (const { name, against } of requirements(LIBRARY)) tally.check(name, against);
  const manifest = (await Bun.file(MANIFEST).json()) as Manifest;
  const built = new Set(inspect(LIBRARY).exported);
  const listed = new Set(manifest.symbols);
  const differ = [...built.symmetricDifference(listed)];
  tally.check("exports what the manifest of the prebuilt library lists", differ);
  tally.check(
    "the prebuilt library is of these sources",
    manifest.sourceHash === sourceHash() ? [] : ["run bun run build:native"],
  );
  tally.check(
    `the manifest's glibc is ${GLIBC_CEILING} at most`,
    Bun.semver.order(`${manifest.glibc}.0`, `${GLIBC_CEILING}.0`) > 0 ? [manifest.glibc] : [],
  );
}
/** Levels of this processor, as the library reports them through the test program that prints them. */
function availableLevels(): string[] {
  const { stdout } = Bun.spawnSync([join(BUILD, "runtime_test"), "--levels"]);
  return stdout.toString().trim().split(",");
}

async function main(): Promise<void> {
  const tally = new Tally();
  build({ tests: true });
  await checkLibrary(tally);
  const available = availableLevels();
  for (const level of LEVELS)
    if (!available.includes(level)) tally.skip(`native tests on x86-64-${level}: this processor lacks it`);
  const sources = readdirSync(join(ROOT, "packages/engine-cpu/native/tests")).filter((file) =>
    file.endsWith("_test.cc"),
  );
  for (const name of sources.map((file) => file.replace(/\.cc$/, "")).sort()) {
    const { exitCode, stdout, stderr } = Bun.spawnSync([join(BUILD, name)]);
    tally.program(name, exitCode, `${stderr}${stdout}`);
  }
  await checkCuda(tally);
  console.log(`${tally.passed} passed, ${tally.failed} failed, ${tally.skipped} skipped`);
  process.exitCode = tally.failed > 0 ? 1 : 0;
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  console.log("0 passed, 1 failed, 0 skipped");
  process.exitCode = 1;
}
