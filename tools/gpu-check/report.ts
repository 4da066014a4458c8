import type { CudaDevice } from "@heed/engine-cuda";
import { aligned } from "../table.ts";
import type { Bound, Measured } from "./measure.ts";
import type { Outcome } from "./parts.ts";

/** All that a run found, as report.json has it. */
export interface Report {
  readonly date: string;
  /** Commit of the sources, "unknown" outside of a repository. */
  readonly commit: string;
  readonly engine: string;
  readonly device: CudaDevice;
  readonly outcomes: readonly Outcome[];
  readonly speeds: readonly Measured[];
}
/** A rate in its unit: TFLOP/s, or GB/s. */
export function formatRate(bound: Bound, rate: number): string {
  return bound === "flops" ? `${(rate / 1e12).toFixed(0)} TFLOP/s` : `${(rate / 1e9).toFixed(0)} GB/s`;
}
function speedCells({ name, bound, milliseconds, rate, share, target, peers, note }: Measured): string[] {
  if (milliseconds === undefined || rate === undefined) return [name, "", "", "", "", note ?? ""];
  const met = target === undefined ? "" : `>= ${formatRate(bound, target)} ${rate >= target ? "yes" : "NO"}`;
  const others = Object.entries(peers).map(([peer, ms]) => `${peer} ${(ms / milliseconds).toFixed(2)} x`);
  const ofPeak = share === undefined || Number.isNaN(share) ? "" : `${(100 * share).toFixed(0)} %`;
  return [name, `${milliseconds.toPrecision(3)} ms`, formatRate(bound, rate), ofPeak, met, others.join(", ")];
}
/** The checks, what failed in full, the speeds, and the counts in one last line. */
export function text({ device, engine, outcomes, speeds }: Report): string {
  const first = (detail: string): string => detail.split("\n")[0]!;
  const figures = aligned(outcomes.map((o) => [o.check, o.status, `${o.seconds.toFixed(1)} s`])).split("\n");
  const checks = outcomes.map((o, i) => `${figures[i]}  ${first(o.detail)}`);
  const failed = outcomes.filter(({ status }) => status === "failed");
  const count = (status: Outcome["status"]): number => outcomes.filter((o) => o.status === status).length;
  return [
    `${engine}: ${device.name}, compute capability ${device.computeCapability}, ${device.multiprocessors} multiprocessors, driver of CUDA ${device.driver}`,
    "",
    aligned([["bench", "median", "rate", "of peak", "target", "its time / ours"], ...speeds.map(speedCells)]),
    "",
    ...checks,
    ...failed.flatMap(({ check, detail }) => ["", `${check}:`, detail]),
    "",
    `${count("passed")} passed, ${count("failed")} failed, ${count("skipped")} skipped`,
  ].join("\n");
}
/** 0 unless a check failed. */
export function exitCode(outcomes: readonly Outcome[]): 0 | 1 {
  return outcomes.some(({ status }) => status === "failed") ? 1 : 0;
}
