// Measures a bench, its peer and the machine's limits side by side: rounds of ours, peer, limit, so that all three see
// the same machine at the same time. Memory bandwidth here swings from minute to minute; a ratio within a round does not.

import { measure } from "mitata";
import type { Peer, PeerRuntime } from "./peers/onnxruntime.ts";
import type { Work } from "./shapes.ts";

/** Something ready to be run again and again. Resources go with `dispose`. */
export interface Subject extends Disposable {
  run(): unknown;
  /** The latest output as float32, row-major; compared with the peer's before anything is timed. */
  read?(): Float32Array | Promise<Float32Array>;
}

/** One bench: what it does, ours, and the peer where there is one. */
export interface Bench {
  readonly name: string;
  readonly dtype: string;
  readonly shape: Readonly<Record<string, number>>;
  readonly work: Work;
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
  readonly peakFraction: number;
  readonly peer?: PeerResult;
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
}

/** Largest difference from the peer, relative to its largest output, that storage in a dtype explains. */
const agreement: Readonly<Record<string, number>> = { float32: 1e-4, float16: 4e-3, bfloat16: 3e-2 };

/**
 * Measures `bench`. Throws when ours and the peer disagree by more than storage explains: a fast wrong answer is not a
 * result.
 */
export async function runBench(bench: Bench, options: RunOptions): Promise<Result> {
  using subject = await bench.open();
  const peer = options.peers && (await bench.openPeer?.(options.peers));
  const samples = { ours: [] as number[], call: [] as number[], peak: [] as number[] };
  let kernel: number[] = [];
  try {
    if (peer) await compare(bench, subject, peer);
    const kind = bench.work.bound === "fma" ? "fma-f32" : "read";
    for (let round = 0; round < (options.rounds ?? 5); round++) {
      samples.ours.push(...(await sample(() => subject.run(), options)));
      if (peer) samples.call.push(...(await sample(() => peer.run(), options)));
      samples.peak.push(options.measurePeak(kind, { threads: options.threads }));
    }
  } finally {
    kernel = (await peer?.close()) ?? [];
  }
  const medianNs = median(samples.ours);
  const peerNs = median(kernel);
  return {
    name: bench.name,
    engine: options.engine,
    dtype: bench.dtype,
    shape: bench.shape,
    threads: options.threads,
    medianNs,
    ...rates(bench.work, medianNs, median(samples.peak)),
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

function rates(work: Work, medianNs: number, peak: number): Pick<Result, "gflops" | "gbps" | "peakFraction"> {
  const perNs = (work.bound === "fma" ? work.flops : work.bytes) / medianNs;
  const peakFraction = (perNs * 1e9) / peak;
  return work.bound === "fma" ? { gflops: perNs, peakFraction } : { gbps: perNs, peakFraction };
}

async function sample(run: () => unknown, options: RunOptions): Promise<readonly number[]> {
  const stats = await measure(run, {
    min_cpu_time: options.roundNs ?? 60e6,
    min_samples: 2,
    gc: false,
  });
  return stats.samples;
}

async function compare(bench: Bench, subject: Subject, peer: Peer): Promise<void> {
  if (!subject.read) return;
  await subject.run();
  await peer.run();
  const ours = await subject.read();
  const difference = relativeDifference(ours, peer.output);
  const allowed = agreement[bench.dtype] ?? 0;
  if (difference <= allowed) return;
  throw new Error(
    `${bench.name}: ours and ${peer.name} differ by ${difference.toExponential(2)} of the largest output; ` +
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
