import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { ROOT, run } from "./child.ts";
import type { CheckContext, Part, Verdict } from "./parts.ts";

/** All vectors that other projects published, on the engine; a few of them where it has to be quick. */
export const vectorsPart: Part = {
  name: "conformance vectors",
  async run({ engine, quick, vectors }) {
    if (!existsSync(join(ROOT, vectors)) && !existsSync(vectors))
      return {
        status: "skipped",
        detail: `there is no folder ${vectors}; --vectors DIR says where they are`,
      };
    const filter = quick ? ["--filter", "llama3_gqa"] : [];
    const { exitCode, stdout, tail } = await run([
      process.execPath,
      "tools/conformance/main.ts",
      vectors,
      "--engine",
      engine.name,
      "--json",
      ...filter,
    ]);
    if (exitCode !== 0) return { status: "failed", detail: tail };
    const { passed } = JSON.parse(stdout) as { passed: number };
    return { status: "passed", detail: `${passed} cases` };
  },
};

/** Tests of the engine that run on the engine which HEED_TEST_ENGINE names (test/support.ts), longest first. */
const SUITES = [
  "fused/*.test.ts",
  "fused.test.ts",
  "core/core.test.ts",
  "tape.test.ts",
  "tensors.test.ts",
  "transfers.test.ts",
];
const QUICK_SUITES = ["tensors.test.ts", "transfers.test.ts"];
const TESTS = "packages/engine-cuda/test";

function suiteFiles(quick: boolean): string[] {
  const folder = join(ROOT, TESTS);
  return (quick ? QUICK_SUITES : SUITES)
    .flatMap((files) => [...new Bun.Glob(files).scanSync(folder)].sort())
    .map((file) => `${TESTS}/${file}`);
}

/** What `bun test` says at its end. */
export function countsOf(report: string): { readonly passed: number; readonly failed: number } {
  const count = (word: string): number =>
    Number(new RegExp(`^\\s*(\\d+) ${word}$`, "m").exec(report)?.[1] ?? 0);
  return { passed: count("pass"), failed: count("fail") };
}
/** Runs a file of tests on the engine; what failed, in words, and how many passed. */
async function suite(
  file: string,
  engine: string,
  say: CheckContext["say"],
): Promise<{ readonly passed: number; readonly words: string | undefined }> {
  const failed: string[] = [];
  const shown = (line: string): void => {
    if (line.startsWith("(fail)")) failed.push(line);
  };
  const command = [process.execPath, "test", "--timeout", "120000", file];
  const { exitCode, tail } = await run(command, { HEED_TEST_ENGINE: engine }, shown);
  const counts = countsOf(tail);
  say(`      ${file}: ${counts.passed} passed, ${counts.failed} failed`);
  failed.forEach((line) => say(`        ${line}`));
  if (exitCode === 0 && counts.passed > 0) return { passed: counts.passed, words: undefined };
  const words = [`${file}: ended with ${exitCode}, ${counts.failed} failed`, ...failed, tail].join("\n");
  return { passed: counts.passed, words };
}
/** The engine's own tests on the device: files side by side, a process each, as many as there are processors. */
export const suitesPart: Part = {
  name: "engine suites",
  async run({ engine, quick, say }) {
    const waiting = suiteFiles(quick);
    const ended: Awaited<ReturnType<typeof suite>>[] = [];
    const work = async (): Promise<void> => {
      for (let file = waiting.shift(); file !== undefined; file = waiting.shift())
        ended.push(await suite(file, engine.name, say));
    };
    await Promise.all(Array.from({ length: availableParallelism() }, work));
    const passed = ended.reduce((all, one) => all + one.passed, 0);
    const failures = ended.flatMap(({ words }) => words ?? []);
    if (failures.length === 0) return { status: "passed", detail: `${passed} tests` };
    return { status: "failed", detail: [`${passed} tests passed, not all`, ...failures].join("\n") };
  },
};

/** What compute-sanitizer looks for. */
const SANITIZERS = ["memcheck", "racecheck", "initcheck", "synccheck"] as const;
/** Its exit code when it found something: not one of ours. */
const FOUND = 9;

/** Where compute-sanitizer is: on the path, or where the CUDA toolkit puts it. */
export function findSanitizer(path: string | undefined = process.env["PATH"]): string | undefined {
  const known = "/usr/local/cuda/bin/compute-sanitizer";
  return Bun.which("compute-sanitizer", { PATH: path ?? "" }) ?? (existsSync(known) ? known : undefined);
}
/** Runs every tool of compute-sanitizer over the short list of short.ts, side by side. */
export async function sanitize(
  sanitizer: string,
  engine: string,
  say: (line: string) => void,
): Promise<Verdict> {
  const short = [process.execPath, "tools/gpu-check/short.ts", engine];
  const look = async (tool: string): Promise<string[]> => {
    const command = [sanitizer, "--tool", tool, "--error-exitcode", String(FOUND), ...short];
    const { exitCode, tail } = await run(command);
    const looked = /SUMMARY: 0 /.test(tail); // without it the program ran, and nobody looked on
    const failed =
      exitCode === FOUND ? "found errors" : `ended with ${exitCode}${looked ? "" : ", without a summary"}`;
    const clean = exitCode === 0 && looked;
    say(`      ${tool} ${clean ? "clean" : failed}`);
    return clean ? [] : [`${tool} ${failed}:\n${tail}`];
  };
  const failures = (await Promise.all(SANITIZERS.map(look))).flat();
  return failures.length === 0
    ? { status: "passed", detail: `${SANITIZERS.join(", ")}: clean` }
    : { status: "failed", detail: failures.join("\n") };
}
/** compute-sanitizer on a device; on the emulation, whose own checks are the like of them, the short list alone. */
export const sanitizersPart: Part = {
  name: "compute-sanitizer",
  async run(context: CheckContext): Promise<Verdict> {
    const { engine, emulated, say } = context;
    const sanitizer = emulated ? undefined : findSanitizer();
    if (sanitizer !== undefined) return sanitize(sanitizer, engine.name, say);
    const { exitCode, tail } = await run([process.execPath, "tools/gpu-check/short.ts", engine.name], {
      HEED_CUDA_EMULATION_RACES: "1",
    });
    if (exitCode !== 0) return { status: "failed", detail: tail };
    const why = emulated
      ? "the device is emulated"
      : "compute-sanitizer was not found on the path or in /usr/local/cuda/bin";
    return {
      status: "skipped",
      detail: `${why}; its short list ran without it${emulated ? ", races looked for" : ""}`,
    };
  },
};
