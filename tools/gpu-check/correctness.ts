import { existsSync } from "node:fs";
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

/** Test files of the engine that run on the engine which HEED_TEST_ENGINE names: test/support.ts. */
const SUITES = [
  "fused.test.ts",
  "core/core.test.ts",
  "fused",
  "tape.test.ts",
  "tensors.test.ts",
  "transfers.test.ts",
];
const QUICK_SUITES = ["tensors.test.ts", "transfers.test.ts"];

/** What `bun test` says at its end. */
export function countsOf(report: string): { readonly passed: number; readonly failed: number } {
  const count = (word: string): number =>
    Number(new RegExp(`^\\s*(\\d+) ${word}$`, "m").exec(report)?.[1] ?? 0);
  return { passed: count("pass"), failed: count("fail") };
}
/** The engine's own tests on the device. */
export const suitesPart: Part = {
  name: "engine suites",
  async run({ engine, quick, say }) {
    const files = (quick ? QUICK_SUITES : SUITES).map((file) => `packages/engine-cuda/test/${file}`);
    let passed = 0;
    const failed: string[] = [];
    const shown = (line: string): void => {
      if (line.startsWith("(fail)")) {
        failed.push(line);
        say(`      ${line}`);
      }
      if (line.startsWith("(pass)") && ++passed % 100 === 0) say(`      ${passed} tests passed`);
    };
    const { exitCode, tail } = await run(
      [process.execPath, "test", "--timeout", "120000", ...files],
      { HEED_TEST_ENGINE: engine.name },
      shown,
    );
    const counts = countsOf(tail);
    if (exitCode !== 0 || counts.passed === 0) {
      const words = `${counts.passed} tests passed, ${counts.failed} failed`;
      return { status: "failed", detail: [words, ...failed, tail].join("\n") };
    }
    return { status: "passed", detail: `${counts.passed} tests` };
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
/** Runs every tool of compute-sanitizer over the short list of short.ts. */
export async function sanitize(
  sanitizer: string,
  engine: string,
  say: (line: string) => void,
): Promise<Verdict> {
  const failures: string[] = [];
  for (const tool of SANITIZERS) {
    say(`      ${tool}`);
    const { exitCode, tail } = await run([
      sanitizer,
      "--tool",
      tool,
      "--error-exitcode",
      String(FOUND),
      process.execPath,
      "tools/gpu-check/short.ts",
      engine,
    ]);
    if (exitCode !== 0)
      failures.push(`${tool} ${exitCode === FOUND ? "found errors" : `ended with ${exitCode}`}:\n${tail}`);
  }
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
