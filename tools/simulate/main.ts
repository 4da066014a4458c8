// Serves a made-up load through the cache's bookkeeping; see arguments.ts.
import "@heed/engine-cpu";
import { parseArguments, type SimulateArguments, usage } from "./arguments.ts";
import { servePaged } from "./paged.ts";
import { simulationPicture } from "./picture.ts";
import { type Outcome, report } from "./report.ts";
import { workload } from "./workload.ts";

async function main({ seed, requests, pages, pageSize, out }: SimulateArguments): Promise<void> {
  const outcomes = [false, true].map((isShared): Outcome => {
    const load = workload({ seed, requests, isShared, rows: pages * pageSize });
    const name = isShared ? "prompts, turns, samples, beams shared" : "nothing shared";
    return { name, load, run: servePaged(load, { pages, pageSize }) };
  });
  console.log(`${pages} pages of ${pageSize} tokens, seed ${seed}\n\n${report(outcomes, pages, pageSize)}`);
  if (out === undefined) return;
  await Bun.write(out, simulationPicture(outcomes[1]!.run.samples, pages, pageSize));
  console.log(`\npicture: ${out}`);
}

if (import.meta.main) {
  let args: SimulateArguments;
  try {
    args = parseArguments(process.argv.slice(2));
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${usage}`);
    process.exit(2);
  }
  if (args.help) console.log(usage);
  else await main(args);
}
