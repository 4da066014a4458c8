/**
 * What `bun run test:native` checks of the CUDA engine. No nvcc and no device: the emulated library is built from source, the runtime runs
 * against a fake driver, the emulation against its own definitions; the library for devices is inspected as it was committed.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { BUILDS, LIBRARIES, sourceHash, type Manifest } from "../../packages/engine-cuda/native/manifest.ts";
import { inspect } from "../native/elf.ts";
import type { Tally } from "../native/tally.ts";
import { capture, ROOT } from "../native/toolchain.ts";
import { buildEmulated, cpp, emulationSources, layoutJobs, runtimeSources } from "./build.ts";
import { compileAll, type Job } from "./objects.ts";
import { BYTES_CEILING, requirements } from "./requirements.ts";
import { BUILD, FLAGS, host, NATIVE } from "./toolchain.ts";

const PREBUILT = join(ROOT, "packages/engine-cuda/prebuilt/linux-x64");
const TESTS = join(NATIVE, "tests");
const testsOf = (prefix: string): string[] =>
  readdirSync(TESTS)
    .filter((file) => file.startsWith(prefix) && file.endsWith("_test.cc"))
    .sort();
const ofTest = (source: string, flags: readonly string[] = FLAGS.runtime): Job => ({
  ...cpp(source, "", flags),
  kind: "tests",
});

/** Links a test program, or with `shared` a library for tests. Returns its path. */
function link(name: string, objects: readonly string[], shared: boolean): string {
  mkdirSync(join(BUILD, "tests"), { recursive: true });
  const path = join(BUILD, "tests", name);
  const options = shared ? ["-shared"] : [];
  capture([host(), ...options, "-pthread", "-o", path, ...objects, "-ldl", "-lm"], `linking ${name}`);
  return path;
}
const compiled = async (jobs: readonly Job[]): Promise<string[]> =>
  (await compileAll(jobs)).map(({ object }) => object);

async function runTests(
  tally: Tally,
  prefix: string,
  sources: readonly Job[],
  flags: readonly string[],
  environment: Record<string, string>,
): Promise<void> {
  const objects = await compiled(sources);
  tally.check(`there are tests of the ${prefix}`, testsOf(prefix).length > 0 ? [] : ["none found"]);
  for (const file of testsOf(prefix)) {
    const [test] = await compiled([ofTest(join(TESTS, file), flags)]);
    const name = file.replace(/\.cc$/, "");
    const program = link(name, [test!, ...objects], false);
    const { exitCode, stdout, stderr } = Bun.spawnSync([program], {
      env: { ...process.env, ...environment },
    });
    tally.program(`cuda ${name}`, exitCode, `${stderr}${stdout}`);
  }
}

/** The runtime against the fake driver: its sources with a kernel table of the tests' own. */
async function checkRuntime(tally: Tally): Promise<void> {
  const fake = ofTest(join(TESTS, "fake_driver.cc"));
  const old: Job = { ...fake, command: [...fake.command, "-DHEED_FAKE_OLD"], kind: "tests-old" };
  const [now, before] = await compiled([fake, old]);
  const sources = runtimeSources("cuda")
    .filter((path) => !/(kernels_embedded|glibc)\.cc$/.test(path))
    .map((source) => cpp(source));
  await runTests(
    tally,
    "runtime",
    [...sources, ...layoutJobs(), ofTest(join(TESTS, "fake_kernels.cc"))],
    FLAGS.runtime,
    {
      HEED_FAKE_DRIVER: link("libfake_driver.so", [now!], true),
      HEED_FAKE_DRIVER_OLD: link("libfake_driver_old.so", [before!], true),
    },
  );
}
async function checkEmulation(tally: Tally): Promise<void> {
  const sources = emulationSources().map((source) => ({
    ...cpp(source, "", FLAGS.kernel),
    kind: "emulated",
  }));
  await runTests(tally, "emulation", sources, FLAGS.kernel, {});
}

function checkPrebuilt(tally: Tally): void {
  const manifest = JSON.parse(readFileSync(join(PREBUILT, "manifest.json"), "utf8")) as Manifest;
  for (const build of BUILDS) {
    const library = join(PREBUILT, LIBRARIES[build]);
    const record = manifest.libraries[build];
    if (!existsSync(library)) {
      tally.check(`${LIBRARIES[build]} is there`, ["run bun run build:cuda"]);
      continue;
    }
    const contents = readFileSync(library);
    tally.check(
      `${LIBRARIES[build]} has ${BYTES_CEILING} bytes at most`,
      contents.length > BYTES_CEILING ? [`${contents.length}`] : [],
    );
    for (const { name, against } of requirements(library))
      tally.check(`${LIBRARIES[build]} ${name}`, against);
    const differ = [...new Set(inspect(library).exported).symmetricDifference(new Set(record.symbols))];
    tally.check(`${LIBRARIES[build]} exports what its manifest lists`, differ);
    tally.check(
      `${LIBRARIES[build]} is of these sources`,
      record.sourceHash === sourceHash(build) ? [] : ["run bun run build:cuda"],
    );
  }
}

/** All checks of the CUDA engine's native part. */
export async function checkCuda(tally: Tally): Promise<void> {
  checkPrebuilt(tally);
  const { library } = await buildEmulated(false);
  for (const { name, against } of requirements(library))
    tally.check(`the emulated library from source ${name}`, against);
  rmSync(library);
  await checkRuntime(tally);
  await checkEmulation(tally);
}
