import type { Result } from "./harness.ts";

const columns = ["bench", "threads", "median", "rate", "of limit", "peer", "its binding", "ratio"] as const;

/** The results as a table of aligned columns: the name left, figures right. Peer columns only when one was measured. */
export function table(results: readonly Result[]): string {
  const used = results.some((result) => result.peer) ? columns.length : 5;
  const rows = [columns, ...results.map(cells)].map((row) => row.slice(0, used));
  const widths = Array.from({ length: used }, (_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
/** What the columns of {@link table} mean. */
export const legend: string = `of limit: of multiply-adds in registers, or of a read of 256 MiB; what a cache holds reads faster than that
peer: its operators alone, by its own profiler; its binding: a whole call; ratio: peer / ours`;

/** A time in the unit that leaves three or four figures. */
export function formatNs(ns: number): string {
  if (ns < 1e3) return `${ns.toFixed(0)} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toPrecision(3)} us`;
  if (ns < 1e9) return `${(ns / 1e6).toPrecision(3)} ms`;
  return `${(ns / 1e9).toPrecision(3)} s`;
}

function cells(result: Result): readonly string[] {
  const rate =
    result.gflops === undefined
      ? `${(result.gbps ?? NaN).toFixed(1)} GB/s`
      : `${result.gflops.toFixed(1)} GFLOP/s`;
  const { peer } = result;
  return [
    result.name,
    String(result.threads),
    formatNs(result.medianNs),
    rate,
    `${(100 * result.peakFraction).toFixed(0)} %`,
    peer ? formatNs(peer.medianNs) : "",
    peer ? formatNs(peer.callNs) : "",
    peer ? `${peer.ratio.toFixed(2)} x` : "",
  ];
}
