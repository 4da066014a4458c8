import type { ReplayReport, TraceDifference } from "@heed/kvcache";
import { aligned } from "../table.ts";
import type { Sampler } from "./samples.ts";

/** The groups and the commands of a replay as two tables. */
export function tables(report: ReplayReport, sampler: Sampler): string {
  const groups = sampler.summaries(report).map((g, n) => {
    const numbers = [g.pages, g.peakLive, g.peakCached, g.leastFree].map(String);
    return [`group ${n}`, ...numbers, `${(100 * g.waste).toFixed(1)} %`];
  });
  const head = ["pages", "total", "most in use", "most cached", "least free", "mean waste"];
  const operations = [...sampler.operations].sort(([, a], [, b]) => b - a).map(([op, n]) => [op, String(n)]);
  return `${aligned([head, ...groups])}\n\n${aligned([["command", "times"], ...operations])}`;
}
/** What a replay ended with, in a line. */
export function verdict({ commands, difference }: ReplayReport): string {
  if (difference === undefined) return `${commands} commands replayed: the same pages`;
  return `DIFFERENT after ${commands} commands: ${describe(difference)}`;
}
function describe({ line, op, field, expected, found }: TraceDifference): string {
  if (field === "error") return `line ${line}, ${op}, failed: ${(found as Error).message}`;
  return `line ${line}, ${op}: ${field} ${JSON.stringify(expected)} in the trace, ${JSON.stringify(found)} in the replay`;
}
