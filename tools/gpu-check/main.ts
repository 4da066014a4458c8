import "@heed/engine-cpu";
import { cuda, cudaEmulated, type CudaEngine } from "@heed/engine-cuda";
import { HeedError } from "@heed/tensor";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type CheckArguments, parseArguments, type PartName, usage } from "./arguments.ts";
import { run } from "./child.ts";
import { sanitizersPart, suitesPart, vectorsPart } from "./correctness.ts";
import type { Measured } from "./measure.ts";
import { offsetsPart } from "./offsets.ts";
import { type CheckContext, type Part, runParts } from "./parts.ts";
import { picture } from "./picture.ts";
import { exitCode, type Report, text } from "./report.ts";
import { speedsPart } from "./speeds.ts";

const BY_NAME: Readonly<Record<PartName, Part>> = {
  vectors: vectorsPart,
  suites: suitesPart,
  sanitizers: sanitizersPart,
  offsets: offsetsPart,
  speeds: speedsPart,
};
async function commit(): Promise<string> {
  if (Bun.which("git") === null) return "unknown";
  const { exitCode: code, stdout } = await run(["git", "rev-parse", "HEAD"]);
  return code === 0 ? stdout.trim() : "unknown";
}
async function check(args: CheckArguments, engine: CudaEngine): Promise<Report> {
  const speeds: Measured[] = [];
  const context: CheckContext = {
    engine,
    emulated: args.engine === "cuda-emulated",
    quick: args.quick,
    vectors: args.vectors,
    say: (line) => console.error(line),
    note: (measured) => speeds.push(measured),
  };
  const outcomes = await runParts(
    args.parts.map((name) => BY_NAME[name]),
    context,
  );
  const date = new Date().toISOString();
  return { date, commit: await commit(), engine: engine.name, device: engine.cuda, outcomes, speeds };
}
/** Makes the folder for the report before the checks run, which take minutes. Throws TypeError in words where it cannot be one. */
async function makeFolder(out: string): Promise<void> {
  try {
    await mkdir(out, { recursive: true });
  } catch (error) {
    throw new TypeError(`--out ${out} cannot be a folder: ${(error as Error).message}`, { cause: error });
  }
}
async function main(args: CheckArguments): Promise<number> {
  const engine = args.engine === "cuda" ? cuda() : cudaEmulated();
  const report = await check(args, engine);
  if (args.out !== undefined) {
    await Bun.write(join(args.out, "report.json"), `${JSON.stringify(report, null, 2)}\n`);
    await Bun.write(join(args.out, "report.svg"), picture(report));
  }
  console.log(text(report));
  return exitCode(report.outcomes);
}

let args: CheckArguments | undefined;
try {
  const parsed = parseArguments(process.argv.slice(2));
  if (!parsed.help && parsed.out !== undefined) await makeFolder(parsed.out);
  args = parsed;
} catch (error) {
  console.error(`${(error as Error).message}\n\n${usage}`);
  process.exitCode = 2;
}
if (args?.help) console.log(usage);
else if (args !== undefined) {
  try {
    process.exitCode = await main(args);
  } catch (error) {
    if (!(error instanceof HeedError)) throw error;
    console.error(`${error.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
