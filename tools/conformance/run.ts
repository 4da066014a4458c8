import { scope } from "@heed/tensor";
import type { Engine } from "@heed/tensor";
import type { BrokenSet, ConformanceSet } from "./discover.ts";
import { judge } from "./judge.ts";
import type { Check, Produced } from "./judge.ts";

/** Why a case is beyond what the library does; counted as skipped, never as passed. */
export class Unsupported {
  readonly reason: string;
  constructor(reason: string) {
    this.reason = reason;
  }
}

/** What became of a case. */
export interface CaseResult {
  readonly set: string;
  readonly name: string;
  readonly status: "passed" | "failed" | "unsupported";
  /** Of a failure or an unsupported case, in words. */
  readonly reason?: string;
  readonly checks: readonly Check[];
}

/** Runs a case of a set on an engine. What it returns outlives the scope it runs in. Throws what the library throws. */
export type Runner = (
  set: ConformanceSet,
  index: number,
  engine: Engine,
) => readonly Produced[] | Unsupported;

/** The cases of the given sets whose "set/case" contains `filter`, run one by one. A set that is broken is a failure. */
export async function runSets(
  sets: readonly (ConformanceSet | BrokenSet)[],
  runner: Runner,
  engine: Engine,
  filter: string = "",
): Promise<CaseResult[]> {
  const results: CaseResult[] = [];
  for (const set of sets) {
    if (set.kind === "broken") {
      const broken = {
        set: set.name,
        name: "(manifest)",
        status: "failed",
        reason: set.reason,
        checks: [],
      } as const;
      if (set.name.includes(filter)) results.push(broken);
      continue;
    }
    for (const [index, { name }] of set.vectors.cases.entries()) {
      if (!`${set.name}/${name}`.includes(filter)) continue;
      results.push({ set: set.name, name, ...(await runCase(runner, set, index, engine)) });
    }
  }
  return results;
}

type Verdict = Omit<CaseResult, "set" | "name">;

async function runCase(runner: Runner, set: ConformanceSet, index: number, engine: Engine): Promise<Verdict> {
  const checks: Check[] = [];
  try {
    const produced = scope(() => runner(set, index, engine));
    if (produced instanceof Unsupported) return { status: "unsupported", reason: produced.reason, checks };
    for (const one of produced) {
      using _value = one.value;
      checks.push(await judge(one));
    }
  } catch (error) {
    return { status: "failed", reason: describe(error), checks };
  }
  // A case that compares nothing proves nothing.
  if (checks.length === 0) return { status: "failed", reason: "the case names no output to compare", checks };
  const faults = checks.flatMap(({ fault }) => fault ?? []);
  return faults.length === 0
    ? { status: "passed", checks }
    : { status: "failed", reason: faults.join("; "), checks };
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}
