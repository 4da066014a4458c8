import { Arrivals } from "./arrivals.ts";
import { MAX_SEQUENCES, MAX_STEP_TOKENS } from "./limits.ts";
import type { Request, Workload } from "./workload.ts";

/** What a cache has served. */
export interface Served {
  /** Steps until the last request was answered. */
  readonly steps: number;
  /** Sequences at once: the most, and the mean over the steps in which requests waited (over all when none ever did). */
  readonly most: number;
  readonly mean: number;
}
/** Adds up the sequences of each step. */
export class Census {
  #steps = 0;
  #sum = 0;
  #waitingSteps = 0;
  #waitingSum = 0;
  #most = 0;
  add(sequences: number, isWaiting: boolean): void {
    this.#steps++;
    this.#sum += sequences;
    this.#most = Math.max(this.#most, sequences);
    if (!isWaiting) return;
    this.#waitingSteps++;
    this.#waitingSum += sequences;
  }
  get served(): Served {
    const mean = this.#waitingSteps > 0 ? this.#waitingSum / this.#waitingSteps : this.#sum / this.#steps;
    return { steps: this.#steps, most: this.#most, mean };
  }
}
interface Running {
  readonly request: Request;
  prompt: number; // tokens left to compute
  output: number; // tokens left to answer
}

/**
 * The same load with a contiguous piece of `rows` rows for each sequence, as long as `rowsOf` says, from its admission to its end: first
 * come, first served, every prompt computed in full. Pieces fit as long as their sum does: no room is lost between them.
 */
export function serveContiguous(load: Workload, rows: number, rowsOf: (request: Request) => number): Served {
  const arrivals = new Arrivals(load);
  const waiting: Request[] = [];
  let running: Running[] = [];
  let free = rows;
  let sequences = 0;
  const census = new Census();
  for (let step = 0; arrivals.isOpen; step++) {
    waiting.push(...arrivals.at(step));
    for (let next = waiting[0]; next !== undefined; next = waiting[0]) {
      const wanted = next.width * rowsOf(next);
      if (wanted > rows) throw new RangeError(`a request of ${wanted} rows cannot be served by ${rows}`);
      if (wanted > free || sequences + next.width > MAX_SEQUENCES) break;
      waiting.shift();
      free -= wanted;
      sequences += next.width;
      running.push({ request: next, prompt: next.prompt, output: next.output });
    }
    census.add(sequences, waiting.length > 0);
    advance(running);
    running = running.filter(({ request, output }) => {
      if (output > 0) return true;
      free += request.width * rowsOf(request);
      sequences -= request.width;
      arrivals.answered(request, step);
      return false;
    });
  }
  return census.served;
}
/** One step: a token for every sequence whose prompt is done, and as much of the prompts as there is room for beside them. */
function advance(running: readonly Running[]): void {
  let room = MAX_STEP_TOKENS;
  const prefilling: Running[] = [];
  for (const one of running) {
    if (one.prompt > 0) prefilling.push(one);
    else {
      one.output--;
      room -= one.request.width;
    }
  }
  for (const one of prefilling) {
    const chunk = Math.min(room, one.prompt);
    one.prompt -= chunk;
    room -= chunk;
  }
}
