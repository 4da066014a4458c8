import type { Check } from "./judge.ts";
import type { CaseResult } from "./run.ts";

/** How many cases ended in which way. */
export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** Counts results; unsupported cases are the skipped ones. */
export function count(results: readonly CaseResult[]): Counts {
  const of = (status: CaseResult["status"]): number => results.filter((one) => one.status === status).length;
  return { passed: of("passed"), failed: of("failed"), skipped: of("unsupported") };
}

/** `N passed, M failed, K skipped`. */
export function summary(results: readonly CaseResult[]): string {
  const { passed, failed, skipped } = count(results);
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/** The check of a set that came nearest to its tolerance, or went furthest beyond. */
export interface Worst extends Check {
  readonly case: string;
}

/** Error as a share of what was allowed; where nothing was allowed, no error counts 0 and any other infinitely much. */
const share = ({ relative, allowed }: Check): number => (relative === 0 ? 0 : relative / allowed);

/** The {@link Worst} check of some results; undefined if nothing was compared. */
export function worstOf(results: readonly CaseResult[]): Worst | undefined {
  let worst: Worst | undefined;
  for (const { name, checks } of results) {
    for (const check of checks) {
      if (worst === undefined || share(check) > share(worst)) worst = { case: name, ...check };
    }
  }
  return worst;
}

/** Results by set, sets in order of first appearance. */
export function bySet(results: readonly CaseResult[]): Map<string, CaseResult[]> {
  return Map.groupBy(results, ({ set }) => set);
}

const columns = ["set", "passed", "failed", "skipped", "worst error", "allowed", "in"] as const;

/** A line per set, then every failure and every reason for not running a case, then the {@link summary}. */
export function table(results: readonly CaseResult[]): string {
  const rows = [
    columns as readonly string[],
    ...[...bySet(results)].map(([set, cases]) => cells(set, cases)),
  ];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const pad = (cell: string, i: number): string =>
    i === 0 || i === columns.length - 1 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!);
  const lines = rows.map((row) => row.map(pad).join("  ").trimEnd());
  return [...lines, ...failures(results), ...reasons(results), "", summary(results)].join("\n");
}

function cells(set: string, cases: readonly CaseResult[]): string[] {
  const { passed, failed, skipped } = count(cases);
  const worst = worstOf(cases);
  const error =
    worst === undefined
      ? ["", "", ""]
      : [worst.relative.toExponential(1), worst.allowed.toExponential(0), `${worst.case}, ${worst.name}`];
  return [set, ...[passed, failed, skipped].map(String), ...error];
}

function failures(results: readonly CaseResult[]): string[] {
  const failed = results.filter(({ status }) => status === "failed");
  return failed.flatMap(({ set, name, reason }, i) => [
    ...(i === 0 ? ["", "failed:"] : []),
    `  ${set}/${name}: ${reason}`,
  ]);
}

function reasons(results: readonly CaseResult[]): string[] {
  const groups = Map.groupBy(
    results.filter(({ status }) => status === "unsupported"),
    ({ reason }) => reason ?? "",
  );
  const lines = [...groups].map(
    ([reason, cases]) => `  ${reason}: ${cases.map(({ set, name }) => `${set}/${name}`).join(", ")}`,
  );
  return lines.length === 0 ? [] : ["", "unsupported:", ...lines];
}

/** The results as one JSON value: the engine, counts, and per set its counts, its worst check and its cases. */
export function json(
  results: readonly CaseResult[],
  engine: { readonly name: string; readonly description: string },
): string {
  const sets = [...bySet(results)].map(([set, cases]) => ({
    set,
    ...count(cases),
    worst: worstOf(cases) ?? null,
    cases: cases.map(({ set: _, ...rest }) => rest),
  }));
  const { name, description } = engine;
  return JSON.stringify({ engine: { name, description }, ...count(results), sets }, null, 2);
}
