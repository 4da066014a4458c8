import type { CudaEngine } from "@heed/engine-cuda";
import type { Measured } from "./measure.ts";

/** How a check ended. A skipped one says in `detail` what is missing. */
export type Status = "passed" | "failed" | "skipped";
/** How a check ended, in words. */
export interface Verdict {
  readonly status: Status;
  readonly detail: string;
}
/** A check that has run. */
export interface Outcome extends Verdict {
  readonly check: string;
  readonly seconds: number;
}
/** What checks work with. */
export interface CheckContext {
  readonly engine: CudaEngine;
  /** The device is emulated: small sizes, and no speeds. */
  readonly emulated: boolean;
  readonly quick: boolean;
  readonly vectors: string;
  /** Shows what is under way. */
  readonly say: (line: string) => void;
  /** Takes a speed, for the report. */
  readonly note: (measured: Measured) => void;
}
/** A check: it passes or is skipped with a verdict, and fails with one or by throwing. */
export interface Part {
  readonly name: string;
  run(context: CheckContext): Promise<Verdict> | Verdict;
}

/** Runs parts one after the other; one that throws has failed, and the others still run. */
export async function runParts(parts: readonly Part[], context: CheckContext): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const [i, part] of parts.entries()) {
    context.say(`[${i + 1}/${parts.length}] ${part.name}`);
    const start = performance.now();
    const verdict = await attempt(part, context);
    const seconds = (performance.now() - start) / 1000;
    outcomes.push({ check: part.name, ...verdict, seconds });
    context.say(`      ${verdict.status} after ${seconds.toFixed(1)} s: ${verdict.detail.split("\n")[0]}`);
  }
  return outcomes;
}
async function attempt(part: Part, context: CheckContext): Promise<Verdict> {
  try {
    return await part.run(context);
  } catch (error) {
    return {
      status: "failed",
      detail: error instanceof Error ? `${error.name}: ${error.message}` : String(error),
    };
  }
}
