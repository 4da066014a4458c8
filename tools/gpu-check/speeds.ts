import { benchOf, peakBenches } from "./benches.ts";
import { type Bound, type GpuBench, measureBench, type Measured } from "./measure.ts";
import type { CheckContext, Part, Verdict } from "./parts.ts";
import { runPeers } from "./peers.ts";
import { formatRate } from "./report.ts";
import { QUICK_SHAPES, type Shape, SHAPES, TINY_SHAPES } from "./shapes.ts";

/** Share of a device's memory that a bench may want. */
const MOST_MEMORY = 0.8;

/** Runs a bench once, untimed: the emulation says nothing about speed. */
async function tryOnce({ engine }: CheckContext, bench: GpuBench): Promise<Measured> {
  using subject = bench.open(engine);
  subject.run();
  await engine.sync();
  return { name: bench.name, bound: bench.bound, peers: {}, note: "ran once, not timed" };
}
async function one(context: CheckContext, bench: GpuBench, peaks: Record<Bound, number>): Promise<Measured> {
  const measured = await measuredOf(context, bench, peaks);
  const { name, bound, milliseconds, rate, note } = measured;
  const words = rate === undefined ? note : `${milliseconds!.toPrecision(3)} ms, ${formatRate(bound, rate)}`;
  context.say(`      ${name}: ${words}`);
  return measured;
}
async function measuredOf(
  context: CheckContext,
  bench: GpuBench,
  peaks: Record<Bound, number>,
): Promise<Measured> {
  const { engine, emulated } = context;
  if (emulated) return tryOnce(context, bench);
  engine.trim();
  const room = engine.memory().deviceFree * MOST_MEMORY;
  if (bench.memory > room) {
    const note = `needs ${Math.ceil(bench.memory / 2 ** 30)} GiB, ${Math.floor(room / 2 ** 30)} are free`;
    return { name: bench.name, bound: bench.bound, peers: {}, note };
  }
  return measureBench(engine, bench, peaks);
}
/** Whether something was slower than its target. */
export function missed(measured: readonly Measured[]): Measured[] {
  return measured.filter(
    ({ rate, target }) => target !== undefined && rate !== undefined && !(rate >= target),
  );
}
/** Speeds of the engine; a target that is missed fails the check. */
export const speedsPart: Part = {
  name: "speeds",
  async run(context): Promise<Verdict> {
    const { emulated, quick, note, say } = context;
    const peaks: Record<Bound, number> = { flops: Number.NaN, bytes: Number.NaN };
    const all: Measured[] = [];
    for (const bench of peakBenches(emulated)) {
      const measured = await one(context, bench, peaks);
      peaks[bench.bound] = measured.rate ?? Number.NaN;
      note(measured);
    }
    const shapes: readonly Shape[] = emulated ? TINY_SHAPES : quick ? QUICK_SHAPES : SHAPES;
    const peers = emulated ? new Map<string, Record<string, number>>() : await runPeers(shapes, say);
    for (const bench of shapes.map(benchOf)) {
      const measured = { ...(await one(context, bench, peaks)), peers: peers.get(bench.name) ?? {} };
      all.push(measured);
      note(measured);
    }
    if (emulated)
      return {
        status: "skipped",
        detail: `${all.length} benches ran once; the emulation says nothing about speed`,
      };
    const slow = missed(all);
    const words = `${all.length} benches, ${slow.length} below their target`;
    return {
      status: slow.length > 0 ? "failed" : "passed",
      detail: [words, ...slow.map(({ name }) => name)].join("\n"),
    };
  },
};
