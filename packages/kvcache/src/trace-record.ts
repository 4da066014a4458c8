import type { Retention } from "./block-pool.ts";
import { StateError } from "./errors.ts";
import { type MatchState, matchState } from "./prefix-match.ts";
import type { PrefixOwner } from "./prefix-roots.ts";
import type { CacheState, OpenFence, OpenStep, SequenceState } from "./state.ts";
import {
  type Command,
  pagesFrom,
  pagesOf,
  type TraceCommand,
  traceCounts,
  traceHeader,
  type TraceOwner,
} from "./trace.ts";

function ownerOf({ namespace = "", adapter }: PrefixOwner): TraceOwner {
  return { namespace, adapter: adapter ?? null };
}
/** Without absent fields; Infinity, which JSON lacks, means what an absent `expires` does. */
function retentionOf({ priority, expires = Infinity }: Retention): Retention {
  return { ...(priority !== undefined && { priority }), ...(expires !== Infinity && { expires }) };
}
/** Numbers things in the order in which they come. */
class Numbers<T extends object> {
  readonly #numbers = new WeakMap<T, number>();
  #next = 0;
  readonly of = (thing: T): number => {
    let number = this.#numbers.get(thing);
    if (number === undefined) this.#numbers.set(thing, (number = this.#next++));
    return number;
  };
}
type Lines = { readonly [Op in Command["op"]]: (c: Command & { readonly op: Op }) => TraceCommand };

/** For each command, its line with numbers in the place of books. */
function linesOf(): Lines {
  const { of: sequence } = new Numbers<SequenceState>();
  const { of: step } = new Numbers<OpenStep>();
  const { of: fence } = new Numbers<OpenFence>();
  const { of: match } = new Numbers<MatchState>();
  const named = (c: {
    readonly op: "release" | "drop" | "empty";
    readonly sequence: SequenceState;
  }): TraceCommand => ({
    op: c.op,
    sequence: sequence(c.sequence),
  });
  return {
    open: ({ op, sequence: s, options }) => {
      const used = options.match === undefined ? null : match(matchState(options.match));
      const owner = { ...ownerOf(options), ...retentionOf(options) };
      return { op, sequence: sequence(s), match: used, ...owner, pages: [pagesFrom(s, 0)] };
    },
    release: named,
    drop: named,
    empty: named,
    match: ({ op, match: m, wanted, options }) => {
      const look = { ids: Array.from(wanted), partial: options.partial ?? false, ...ownerOf(options) };
      return { op, match: match(m), ...look, pages: pagesOf(m) };
    },
    unmatch: ({ op, match: m }) => ({ op, match: match(m) }),
    invalidate: ({ op, adapter = null }) => ({ op, adapter }),
    clock: ({ op, now }) => ({ op, now }),
    pin: ({ op, match: m }) => ({ op, match: match(m), pages: pagesOf(m) }),
    insert: ({ op, match: m, parent, ids, present, owner, pages }) => {
      const block = { parent, ids: [...ids], present, ...ownerOf(owner) };
      return { op, match: match(m), ...block, pages: [[[...pages]]] };
    },
    reserve: ({ op, step: s, rows }) => {
      const pages = rows.map(([of]) => pagesFrom(of, of.length));
      return { op, step: step(s), rows: rows.map(([of, tokens]) => [sequence(of), tokens]), pages };
    },
    commit: ({ op, step: s, ids }) => ({
      op,
      step: step(s),
      ids: ids === undefined ? null : Array.from(ids),
    }),
    cancel: ({ op, step: s }) => ({ op, step: step(s) }),
    fork: ({ op, sequence: s, fork }) => ({ op, sequence: sequence(s), fork: sequence(fork) }),
    truncate: ({ op, sequence: s, length }) => ({ op, sequence: sequence(s), length }),
    fence: ({ op, fence: f, sequences }) => ({
      op,
      fence: fence(f),
      sequences: Array.from(sequences, sequence),
    }),
    lift: ({ op, fence: f }) => ({ op, fence: fence(f) }),
    take: ({ op, sequence: s, from, sealed }) => {
      const ids = s.tokenIds === undefined ? null : [...s.tokenIds.subarray(0, s.length)];
      return { op, sequence: sequence(s), length: s.length, from, sealed, ids, pages: [pagesFrom(s, 0)] };
    },
    reset: ({ op }) => ({ op }),
  };
}
/** Whether nothing is open and the pages are free in their first order: a new cache, or one that was reset. */
function isAsNew({ sequences, steps, fences, groups }: CacheState): boolean {
  if (sequences.size + steps.size + fences.size > 0) return false;
  return groups.every(
    ({ pool }) => pool.free === pool.count && pool.freePages().every((page, i) => page === i + 1),
  );
}
/** A trace that is being written. */
export class Recording {
  readonly #cache: CacheState;
  #error: unknown;
  #open = true;
  constructor(cache: CacheState) {
    this.#cache = cache;
  }
  /** What the sink has thrown, which ended the trace. */
  get error(): unknown {
    return this.#error;
  }
  /** Ends the trace because of an error. */
  stop(error: unknown): void {
    this.#error = error;
    this[Symbol.dispose]();
  }
  /** Ends the trace. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#open) this.#cache.observer = undefined;
    this.#open = false;
  }
}
/**
 * Writes every command of a cache from now on as lines of JSON to `sink`, the header first, until the result is disposed or the sink
 * throws: a command that has been done does not fail for that. Throws
 * StateError unless the cache is as new, so that a replay can start where the trace does, and unrecorded.
 */
export function record(cache: CacheState, sink: (line: string) => void): Recording {
  if (cache.observer !== undefined || !isAsNew(cache)) {
    throw new StateError("[kvcache.record] a trace starts with a new cache that nobody records; make one", {
      recorded: cache.observer !== undefined,
    });
  }
  const lines = linesOf();
  const recording = new Recording(cache);
  cache.observer = (command) => {
    try {
      sink(
        JSON.stringify({
          ...(lines[command.op] as (c: Command) => TraceCommand)(command),
          ...traceCounts(cache),
        }),
      );
    } catch (error) {
      recording.stop(error);
    }
  };
  try {
    sink(JSON.stringify(traceHeader(cache)));
  } catch (error) {
    recording.stop(error);
    throw error;
  }
  return recording;
}
