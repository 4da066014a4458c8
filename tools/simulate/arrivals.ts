import type { Request, Workload } from "./workload.ts";

/** Which requests wait to be served: first turns from their arrival on, later ones some time after the turn before was answered. */
export class Arrivals {
  readonly #first: readonly Request[];
  readonly #later = new Map<number, Request[]>(); // by the step in which they arrive
  #at = 0;
  #open: number;
  constructor({ first, requests }: Workload) {
    this.#first = first;
    this.#open = requests.length;
  }
  /** Whether some request has not been answered. */
  get isOpen(): boolean {
    return this.#open > 0;
  }
  /** Those that arrive in this step; to be asked for each step in turn. */
  at(step: number): Request[] {
    const due: Request[] = [];
    while (this.#at < this.#first.length && this.#first[this.#at]!.after <= step)
      due.push(this.#first[this.#at++]!);
    due.push(...(this.#later.get(step) ?? []));
    this.#later.delete(step);
    return due;
  }
  /** Says that a request has been answered in this step. */
  answered({ next }: Request, step: number): void {
    this.#open--;
    if (next === undefined) return;
    const when = step + 1 + next.after;
    const due = this.#later.get(when);
    if (due === undefined) this.#later.set(when, [next]);
    else due.push(next);
  }
}
