// Measures a bench, its baseline, its peer and the machine's limits side by side: rounds of ours, baseline, peer, limit, so that all
// see the same machine at the same time. Memory bandwidth here swings from minute to minute; a ratio within a round does not.

import { measure } from "mitata";
import type { Peer, PeerRuntime } from "./peers/onnxruntime.ts";
import type { Work } from "./shapes.ts";

/** Something ready to be run again and again. Resources go with `dispose`. */
export interface Subject extends Disposable {
  run(): unknown;
  /** The latest output as float32, row-major; compared with the peer's before anything is timed. */
  read?(): Float32Array | Promise<Float32Array>;
}

/** Another way to do the same, measured in the same rounds. */
export interface Baseline {
  readonly name: string;
  open(): Subject | Promise<Subject>;
}

/** What a bench should reach: at most so many ns for each call of its work, or at least so many times its baseline's speed. */
export type Target = { readonly mostNs: number } | { readonly leastRatio: number };

/** One bench: what it does, ours, and what it is measured against where there is something. */
export interface Bench {
  readonly name: string;
  /** What else a filter finds it by. */
  readonly topic?: string;
  readonly dtype: string;
  readonly shape: Readonly<Record<string, number>>;
  readonly work: Work;
  readonly target?: Target;
  readonly baseline?: Baseline;
  open(): Subject | Promise<Subject>;
  openPeer?(peers: PeerRuntime): Promise<Peer>;
}

/** Limits of the machine, measured on demand: FLOP/s of a float32 FMA loop, bytes/s of a streaming read. */
export type MeasurePeak = (kind: "fma-f32" | "read", options: { readonly threads: number }) => number;

/** A row of the report. Times are medians; rates and the share of the limit follow from the work that can't be avoided. */
export interface Result {
  readonly name: string;
  readonly engine: string;
  readonly dtype: string;
  readonly shape: Readonly<Record<string, number>>;
  readonly threads: number;
  readonly medianNs: number;
  readonly gflops?: number;
  readonly gbps?: number;
  /** Time of one call, where the work is calls. */
  readonly call?: { readonly ns: number; readonly unit: string };
  /** Absent where the work is calls. */
  readonly peakFraction?: number;
  readonly baseline?: BaselineResult;
  readonly target?: Target;
  readonly isMet?: boolean;
  readonly peer?: PeerResult;
}

/** `ratio` > 1: ours is faster; the median over the rounds of what each showed. */
export interface BaselineResult {
  readonly name: string;
  readonly medianNs: number;
  readonly ratio: number;
}

/** `medianNs` is what the peer's operators took, `callNs` what a call through its binding took; `ratio` > 1: ours is faster. */
export interface PeerResult {
  readonly name: string;
  readonly medianNs: number;
  readonly callNs: number;
  readonly ratio: number;
}

/** Under what a bench is measured. */
export interface RunOptions {
  readonly engine: string;
  readonly threads: number;
  readonly measurePeak: MeasurePeak;
  readonly peers?: PeerRuntime;
  /** Rounds of ours, peer, limit; 5 unless given. */
  readonly rounds?: number;
  /** Time for each side in each round, 60 ms unless given; at least two runs happen. */
  readonly roundNs?: number;
  /** Time that work in calls runs before it is measured, 500 ms unless given: its code is compiled meanwhile, beside it. */
  readonly warmNs?: number;
}

/** Largest difference from the peer, relative to its largest output, that storage in a dtype explains; others are not compared. */
const agreement: Readonly<Record<string, number>> = { float32: 1e-4, float16: 4e-3, bfloat16: 3e-2 };

/**
 * Measures `bench`. Throws when ours and the peer, or a baseline of the same dtype, disagree by more than storage explains: a fast
 * wrong answer is not a result.
 */
export async function runBench(bench: Bench, options: RunOptions): Promise<Result> {
  using subject = await bench.open();
  using baseline = await bench.baseline?.open();
  const peer = options.peers && (await bench.openPeer?.(options.peers));
  const samples = {
    ours: [] as number[],
    baseline: [] as number[],
    ratio: [] as number[],
    call: [] as number[],
    peak: [] as number[],
  };
  let kernel: number[] = [];
  try {
    if (baseline?.read) await compare(bench, subject, bench.baseline!.name, async () => baseline.read!());
    if (peer) await compare(bench, subject, peer.name, async () => (await peer.run(), peer.output));
    if (bench.work.bound === "calls") await warm(subject, options.warmNs ?? 500e6);
    for (let round = 0; round < (options.rounds ?? 5); round++) {
      const ours = await sample(() => subject.run(), options);
      samples.ours.push(...ours);
      if (baseline) {
        const theirs = await sample(() => baseline.run(), options);
        samples.baseline.push(...theirs);
        samples.ratio.push(median(theirs) / median(ours));
      }
      if (peer) samples.call.push(...(await sample(() => peer.run(), options)));
      const { bound } = bench.work;
      if (bound === "calls") continue;
      samples.peak.push(
        options.measurePeak(bound === "fma" ? "fma-f32" : "read", { threads: options.threads }),
      );
    }
  } finally {
    kernel = (await peer?.close()) ?? [];
  }
  const medianNs = median(samples.ours);
  const peerNs = median(kernel);
  const ratio = median(samples.ratio);
  return {
    name: bench.name,
    engine: options.engine,
    dtype: bench.dtype,
    shape: bench.shape,
    threads: options.threads,
    medianNs,
    ...rates(bench.work, medianNs, median(samples.peak)),
    ...(bench.baseline && {
      baseline: { name: bench.baseline.name, medianNs: median(samples.baseline), ratio },
    }),
    ...(bench.target && { target: bench.target, isMet: isMet(bench, bench.target, medianNs, ratio) }),
    ...(peer && {
      peer: {
        name: peer.name,
        medianNs: peerNs,
        callNs: median(samples.call),
        ratio: peerNs / medianNs,
      },
    }),
  };
}

/** The middle value; the mean of the two middle ones for an even count; NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

function isMet({ name, work }: Bench, target: Target, medianNs: number, ratio: number): boolean {
  if ("leastRatio" in target) return ratio >= target.leastRatio;
  if (work.bound === "calls") return medianNs / work.count <= target.mostNs;
  throw new Error(`${name}: a target in ns is for work in calls`);
}

type Rates = Pick<Result, "gflops" | "gbps" | "peakFraction" | "call">;

function rates(work: Work, medianNs: number, peak: number): Rates {
  if (work.bound === "calls") return { call: { ns: medianNs / work.count, unit: work.unit } };
  const perNs = (work.bound === "fma" ? work.flops : work.bytes) / medianNs;
  const peakFraction = (perNs * 1e9) / peak;
  return work.bound === "fma" ? { gflops: perNs, peakFraction } : { gbps: perNs, peakFraction };
}

async function warm(subject: Subject, ns: number): Promise<void> {
  const end = Bun.nanoseconds() + ns;
  while (Bun.nanoseconds() < end) await subject.run();
}

async function sample(run: () => unknown, options: RunOptions): Promise<readonly number[]> {
  const stats = await measure(run, {
    min_cpu_time: options.roundNs ?? 60e6,
    min_samples: 2,
    batch_threshold: 1000, // ns: longer runs are timed one by one, and the median passes over those that were interrupted
    gc: false,
  });
  return stats.samples;
}

async function compare(
  bench: Bench,
  subject: Subject,
  name: string,
  run: () => Promise<Float32Array>,
): Promise<void> {
  const allowed = agreement[bench.dtype];
  if (!subject.read || allowed === undefined) return;
  await subject.run();
  const expected = await run();
  const difference = relativeDifference(await subject.read(), expected);
  if (difference <= allowed) return;
  throw new Error(
    `${bench.name}: ours and ${name} differ by ${difference.toExponential(2)} of the largest output; ` +
      `${bench.dtype} explains ${allowed}`,
  );
}

/** max |a - b| / max |b|; infinite for a NaN or for different lengths. */
export function relativeDifference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Infinity;
  let largest = 0;
  let difference = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (Number.isNaN(d)) return Infinity;
    if (d > difference) difference = d;
    largest = Math.max(largest, Math.abs(b[i]!));
  }
  return difference === 0 ? 0 : difference / largest;
}
