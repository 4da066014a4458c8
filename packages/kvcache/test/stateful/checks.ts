/** Throws unless it holds. */
export function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}
/** Throws unless `act` throws, or its promise rejects with, an error of one of these classes. */
export function mustThrow(act: () => unknown, ...kinds: readonly (new (...args: never[]) => Error)[]): void {
  try {
    act();
  } catch (error) {
    if (kinds.some((kind) => error instanceof kind)) return;
    throw error;
  }
  must(false, `${kinds.map(({ name }) => name).join(" or ")} was not thrown`);
}
/** How often things have come to pass. */
export class Coverage {
  readonly counts: Map<string, number> = new Map();
  add(what: string, times = 1): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + times);
  }
}
