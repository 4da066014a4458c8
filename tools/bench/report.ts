import { aligned } from "../table.ts";
import type { Result, Target } from "./harness.ts";

type Column = readonly [head: string, cell: (result: Result) => string];

const columns: readonly Column[] = [
  ["bench", (r) => r.name],
  ["threads", (r) => String(r.threads)],
  ["median", (r) => formatNs(r.medianNs)],
  ["rate", rate],
  ["of limit", (r) => (r.peakFraction === undefined ? "" : `${(100 * r.peakFraction).toFixed(0)} %`)],
  ["against", (r) => (r.baseline ? `${r.baseline.ratio.toFixed(2)} x ${r.baseline.name}` : "")],
  ["target", (r) => (r.target ? describeTarget(r.target) : "")],
  ["met", (r) => (r.isMet === undefined ? "" : r.isMet ? "yes" : "NO")],
  ["peer", (r) => (r.peer ? formatNs(r.peer.medianNs) : "")],
  ["its binding", (r) => (r.peer ? formatNs(r.peer.callNs) : "")],
  ["ratio", (r) => (r.peer ? `${r.peer.ratio.toFixed(2)} x` : "")],
];

/** The results as a table of aligned columns: the name left, figures right. Only columns in which something stands. */
export function table(results: readonly Result[]): string {
  const used = columns.filter(([, cell]) => results.some((result) => cell(result) !== ""));
  return aligned([used.map(([head]) => head), ...results.map((r) => used.map(([, cell]) => cell(r)))]);
}
/** What the columns of {@link table} mean. */
export const legend: string = `of limit: of multiply-adds in registers, or of a read of 256 MiB; what a cache holds reads faster than that
against: speed beside another way to do it, measured in the same rounds; target: of docs/guides/kvcache.md
peer: its operators alone, by its own profiler; its binding: a whole call; ratio: peer / ours`;

/** A time in the unit that leaves three or four figures. */
export function formatNs(ns: number): string {
  if (ns < 10) return `${ns.toFixed(1)} ns`;
  if (ns < 1e3) return `${ns.toFixed(0)} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toPrecision(3)} us`;
  if (ns < 1e9) return `${(ns / 1e6).toPrecision(3)} ms`;
  return `${(ns / 1e9).toPrecision(3)} s`;
}

function rate({ call, gflops, gbps }: Result): string {
  if (call !== undefined) return `${formatNs(call.ns)} a ${call.unit}`;
  return gflops === undefined ? `${(gbps ?? NaN).toFixed(1)} GB/s` : `${gflops.toFixed(1)} GFLOP/s`;
}
function describeTarget(target: Target): string {
  return "mostNs" in target ? `<= ${formatNs(target.mostNs)}` : `>= ${target.leastRatio} x`;
}
