/** A block became findable. */
export interface StoredEvent {
  readonly kind: "stored";
  readonly number: number;
  /** Key of the block, 64 hexadecimal digits. */
  readonly key: string;
  /** Key of the block, or of the root, before it. */
  readonly parent: string;
  readonly tokens: readonly number[];
  readonly namespace: string;
  readonly adapter: string | undefined;
}
/** Blocks can no longer be found: evicted, cut, over their quota or invalidated. A block stands before those that led to it. */
export interface RemovedEvent {
  readonly kind: "removed";
  readonly number: number;
  readonly keys: readonly string[];
}
/** No block can be found any more. */
export interface ClearedEvent {
  readonly kind: "cleared";
  readonly number: number;
}
/** What happened to the index of prefixes. Numbers rise by one. */
export type PrefixEvent = StoredEvent | RemovedEvent | ClearedEvent;
type Unnumbered<E> = E extends PrefixEvent ? Omit<E, "number"> : never;

/** What `events(since)` returns. */
export interface EventBatch {
  readonly events: readonly PrefixEvent[];
  /** What to pass as `since` the next time. */
  readonly next: number;
  /** Events since then that the log no longer has; when not 0, rebuild from `cache.prefixes()`. */
  readonly lost: number;
}

/** The last `capacity` events, in a ring. */
export class EventLog {
  readonly capacity: number;
  readonly #ring: PrefixEvent[] = [];
  #next = 0;
  constructor(capacity: number) {
    this.capacity = capacity;
  }
  /** Number of the next event. */
  get next(): number {
    return this.#next;
  }
  add(event: Unnumbered<PrefixEvent>): void {
    const number = this.#next++;
    if (this.capacity > 0) this.#ring[number % this.capacity] = { ...event, number } as PrefixEvent;
  }
  /** The events numbered `since` and up that the log has, in order. */
  since(since: number): EventBatch {
    const first = Math.max(since, this.#next - this.#ring.length);
    const events: PrefixEvent[] = [];
    for (let n = first; n < this.#next; n++) events.push(this.#ring[n % this.capacity]!);
    return { events, next: this.#next, lost: Math.min(first, this.#next) - Math.min(since, this.#next) };
  }
}
