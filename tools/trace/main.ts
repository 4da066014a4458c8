// Replays a trace of a key/value cache, prints what became of its pages, and draws the pools over time.
import "@heed/engine-cpu";
import { basename } from "node:path";
import { replayTrace } from "@heed/kvcache";
import { HeedError } from "@heed/tensor";
import { parseArguments, type TraceArguments, usage } from "./arguments.ts";
import { poolPicture } from "./picture.ts";
import { tables, verdict } from "./report.ts";
import { Sampler } from "./samples.ts";

const SAMPLES = 800; // about one for each point of the picture's width

async function main({ file, svg }: TraceArguments): Promise<number> {
  const lines = (await Bun.file(file).text()).split("\n");
  const commands = lines.filter((line) => line.trim() !== "").length - 1;
  const sampler = new Sampler(commands, SAMPLES);
  const report = replayTrace(lines, { onCommand: sampler.see });
  await Bun.write(svg, poolPicture(report.header, sampler.samples, `Pages over time: ${basename(file)}`));
  console.log(`${tables(report, sampler)}\n\n${verdict(report)}\npicture: ${svg}`);
  return report.difference === undefined ? 0 : 1;
}

if (import.meta.main) {
  let args: TraceArguments;
  try {
    args = parseArguments(process.argv.slice(2));
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${usage}`);
    process.exit(2);
  }
  if (args.help) console.log(usage);
  else {
    const code = await main(args).catch((error: unknown) => {
      const isFile =
        (error as { code?: unknown }).code === "ENOENT" || (error as { code?: unknown }).code === "EISDIR";
      if (!(error instanceof HeedError) && !isFile) throw error;
      console.error((error as Error).message);
      return 2;
    });
    process.exit(code);
  }
}
