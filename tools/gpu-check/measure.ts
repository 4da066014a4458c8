import type { CudaEngine } from "@heed/engine-cuda";
import { median } from "../bench/harness.ts";

/** What bounds a bench: operations on tensor cores, or bytes of memory. */
export type Bound = "flops" | "bytes";
/** A bench: what it is, the least work of one run, and how to get ready. */
export interface GpuBench {
  readonly name: string;
  readonly bound: Bound;
  readonly work: number;
  /** Bytes of device memory that it needs. */
  readonly memory: number;
  /** Least rate that the design asks of a Hopper device, in the unit of `bound` a second. */
  readonly target?: number;
  /** Least share that the design asks of what a product or a copy reaches on this device; in place of `target`. */
  readonly targetShare?: number;
  open(engine: CudaEngine): Subject;
}
/** Something ready to run; memory goes with `dispose`. */
export interface Subject extends Disposable {
  run(): void;
}
/** A speed, or, on an emulated device or where memory is short, that the bench was not timed. */
export interface Measured {
  readonly name: string;
  readonly bound: Bound;
  readonly milliseconds?: number;
  /** Work a second. */
  readonly rate?: number;
  /** Of what a product or a copy on this device reaches. */
  readonly share?: number;
  readonly target?: number;
  /** Milliseconds of others on the same shape. */
  readonly peers: Readonly<Record<string, number>>;
  readonly note?: string;
}

const ROUNDS = 7;
/** A measured launch takes at least so long, so that events' half microsecond does not count. */
const LEAST_MILLISECONDS = 2;

/**
 * Milliseconds of one run: the median of several launches of a graph that holds the run so often that a launch takes two milliseconds.
 * In a graph, what the host does between two launches does not count.
 */
export async function time(engine: CudaEngine, subject: Subject): Promise<number> {
  const capture = (count: number) =>
    engine.capture!(() => {
      for (let i = 0; i < count; i++) subject.run();
    });
  subject.run(); // loads the kernels
  await engine.sync();
  let count = 1;
  {
    using once = capture(1);
    once.launch();
    const first = await engine.elapsed(() => once.launch());
    count = Math.min(200, Math.ceil(LEAST_MILLISECONDS / Math.max(first, 1e-3)));
  }
  using graph = capture(count);
  graph.launch();
  const samples: number[] = [];
  for (let i = 0; i < ROUNDS; i++) samples.push((await engine.elapsed(() => graph.launch())) / count);
  return median(samples);
}
/** The least rate asked of a bench: a rate on Hopper alone; none where it is a share of a peak that was not measured. */
function targetOf(
  { bound, target, targetShare }: GpuBench,
  { cuda }: CudaEngine,
  peaks: Readonly<Record<Bound, number>>,
): number | undefined {
  if (target !== undefined) return cuda.computeCapability === "9.0" ? target : undefined;
  const least = targetShare === undefined ? undefined : targetShare * peaks[bound];
  return Number.isNaN(least) ? undefined : least;
}
/** The speed of a bench beside the device's peaks, in work a second. */
export async function measureBench(
  engine: CudaEngine,
  bench: GpuBench,
  peaks: Readonly<Record<Bound, number>>,
): Promise<Measured> {
  const { name, bound, work } = bench;
  const target = targetOf(bench, engine, peaks);
  using subject = bench.open(engine);
  const milliseconds = await time(engine, subject);
  const rate = (work / milliseconds) * 1000;
  return {
    name,
    bound,
    milliseconds,
    rate,
    share: rate / peaks[bound],
    peers: {},
    ...(target !== undefined && { target }),
  };
}
