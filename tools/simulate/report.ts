import { aligned } from "../table.ts";
import { serveContiguous, type Served } from "./contiguous.ts";
import type { PagedRun } from "./paged.ts";
import { means } from "./samples.ts";
import { lengthOf, MAX_LENGTH, type Request, type Workload } from "./workload.ts";

/** One load and what became of it in the paged cache. */
export interface Outcome {
  readonly name: string;
  readonly load: Workload;
  readonly run: PagedRun;
}
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const mean = (requests: readonly Request[], of: (r: Request) => number): string =>
  (requests.reduce((sum, r) => sum + of(r), 0) / requests.length).toFixed(0);
const atOnce = ({ mean, most }: Served): string => `${mean.toFixed(0)}, ${most}`;

/** What became of the loads, beside what a contiguous cache of as many rows would serve. */
export function report(outcomes: readonly Outcome[], pages: number, pageSize: number): string {
  const columns = outcomes.map((outcome) => column(outcome, pages, pageSize));
  const heads = ["", ...outcomes.map(({ name }) => name)];
  return aligned([heads, ...columns[0]!.map(([label], i) => [label, ...columns.map((c) => c[i]![1])])]);
}
function column({ load, run }: Outcome, pages: number, pageSize: number): [label: string, value: string][] {
  const { requests } = load;
  const { waste, tokensPerRow, length } = means(run.samples, pageSize);
  const rows = pages * pageSize;
  const exact = serveContiguous(load, rows, lengthOf);
  const longest = serveContiguous(load, rows, () => MAX_LENGTH);
  const rate = (run.tokens / run.bookkeepingMs) * 1e3;
  return [
    ["requests", String(requests.length)],
    ["tokens of a request: mean", mean(requests, lengthOf)],
    ["  of which are answered", mean(requests, (r) => r.output)],
    ["tokens of a sequence at a moment: mean", length.toFixed(0)],
    ["waste: rows without a token in pages in use", percent(waste)],
    ["tokens seen for each row in use", tokensPerRow.toFixed(2)],
    ["prompt tokens found", percent(run.foundTokens / run.promptTokens)],
    ["pages evicted", String(run.evictedPages)],
    ["requests put off for want of pages", String(run.putOff)],
    ["tokens computed again", String(run.repeatedTokens)],
    ["sequences at once (mean while others wait, most)", atOnce(run)],
    ["  contiguous, of exactly the length to come", atOnce(exact)],
    [`  contiguous, of ${MAX_LENGTH} tokens`, atOnce(longest)],
    ["steps to serve all", String(run.steps)],
    ["  contiguous, of exactly the length to come", String(exact.steps)],
    [`  contiguous, of ${MAX_LENGTH} tokens`, String(longest.steps)],
    ["tokens kept books of in a second", rate.toPrecision(3)],
  ];
}
