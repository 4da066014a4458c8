import { appendBenches } from "./append.bench.ts";
import { parseArguments, usage } from "./arguments.ts";
import type { BenchArguments } from "./arguments.ts";
import { cacheBenches } from "./cache.bench.ts";
import { decodeBenches } from "./decode.bench.ts";
import { cpuEngine } from "./engine.ts";
import { runBench } from "./harness.ts";
import type { Bench, Result } from "./harness.ts";
import { layerBenches } from "./layer.bench.ts";
import { linearBenches } from "./linear.bench.ts";
import { openPeerRuntime } from "./peers/onnxruntime.ts";
import type { PeerRuntime } from "./peers/onnxruntime.ts";
import { prefillBenches } from "./prefill.bench.ts";
import { legend, table } from "./report.ts";

async function main(args: BenchArguments): Promise<void> {
  const engine = cpuEngine();
  const groups = [prefillBenches, decodeBenches, appendBenches, cacheBenches, linearBenches, layerBenches];
  const benches = groups
    .flatMap((group) => group(engine))
    .filter(({ name, topic }) => name.includes(args.filter) || topic === args.filter);
  if (benches.length === 0) throw new Error(`no bench has "${args.filter}" in its name`);
  const threaded = benches.filter(({ work }) => work.bound !== "calls");
  const results: Result[] = [];
  for (const [n, threads] of args.threads.entries()) {
    engine.setThreads(threads);
    const peers = args.peers ? await openPeerRuntime(threads) : undefined;
    results.push(...(await runAll(n === 0 ? benches : threaded, threads, engine, peers)));
  }
  console.log(`${table(results)}\n${legend}`);
  if (args.json !== undefined) await Bun.write(args.json, `${JSON.stringify(results, null, 2)}\n`);
}

async function runAll(
  benches: readonly Bench[],
  threads: number,
  { name: engine, measurePeak }: ReturnType<typeof cpuEngine>,
  peers: PeerRuntime | undefined,
): Promise<Result[]> {
  const results: Result[] = [];
  for (const [i, bench] of benches.entries()) {
    process.stderr.write(`[${i + 1}/${benches.length}, ${threads} threads] ${bench.name}\n`);
    results.push(await runBench(bench, { engine, threads, measurePeak, ...(peers && { peers }) }));
  }
  return results;
}

if (import.meta.main) {
  let args: BenchArguments;
  try {
    args = parseArguments(process.argv.slice(2));
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${usage}`);
    process.exit(2);
  }
  if (args.help) console.log(usage);
  else await main(args);
}
