import { type Engine, FormatError, HeedError } from "@heed/tensor";
import { NULL_PAGE } from "./block-pool.ts";
import { cacheState, KvCache } from "./cache.ts";
import type { Fence } from "./fences.ts";
import { insertBlock } from "./prefix-load.ts";
import { type MatchState, matchState, type PrefixMatch } from "./prefix-match.ts";
import type { PrefixOwner } from "./prefix-roots.ts";
import { pinPages, unpinPages } from "./prefix-save.ts";
import { expirePriorities } from "./prefixes.ts";
import { type Sequence, stateOf } from "./sequence.ts";
import { areSealed, placesOf } from "./snapshot.ts";
import { type CacheState, pagesFor, type SequenceState } from "./state.ts";
import type { Step } from "./step.ts";
import { emptyLists, releaseLists, takeLists } from "./swap-pages.ts";
import {
  pagesFrom,
  pagesOf,
  type TraceOwner,
  type TraceCommand,
  traceCounts,
  type TraceHeader,
  type TracePages,
} from "./trace.ts";
import { parseTraceHeader, parseTraceLine, type TraceLine } from "./trace-parse.ts";

/** Where a replay went another way than its trace. */
export interface TraceDifference {
  /** Line of the trace, the header being 1. */
  readonly line: number;
  readonly op: TraceCommand["op"];
  /** What differs: "pages", "free", "cached", "residual", or "error" when the command failed. */
  readonly field: string;
  readonly expected: unknown;
  readonly found: unknown;
}
/** What a replay has seen. */
export interface ReplayReport {
  readonly header: TraceHeader;
  /** Commands replayed, the one that differs included. */
  readonly commands: number;
  /** The first difference, at which the replay has stopped; undefined when there is none. */
  readonly difference: TraceDifference | undefined;
}
/** Options of {@link replayTrace}. */
export interface ReplayOptions {
  /** An engine for the replay's pages, which have a row of two numbers a token; default the default engine. */
  readonly engine?: Engine | string | undefined;
  /** Called after each command; it may look at the cache, but not use it. */
  readonly onCommand?: ((cache: KvCache, command: TraceLine, line: number) => void) | undefined;
}

/** The cache's clock stands where the trace says that it mattered. */
interface Clock {
  now: number;
}
/** A cache with the pages of the traced one, but the smallest rows. */
function cacheFor(
  { groups, draftMargin, prefixes }: TraceHeader,
  engine: ReplayOptions["engine"],
  clock: Clock,
): KvCache {
  return new KvCache({
    groups: groups.map((g, n) => ({
      layers: [n],
      numKvHeads: 1,
      headDim: 1,
      pageSize: g.pageSize,
      window: g.window ?? undefined,
      sinks: g.sinks,
      dtype: g.residualPages === undefined ? "float16" : "int4",
      maxPages: g.maxPages,
      maxResidualPages: g.residualPages,
    })),
    draftMargin,
    prefixes: prefixes !== null && { quota: prefixes.quota ?? undefined, quotas: prefixes.quotas },
    now: () => clock.now,
    engine,
  });
}
/** What a trace's numbers stand for, and how its commands are done. */
class Replay {
  readonly cache: KvCache;
  readonly #sequences = new Map<number, Sequence>();
  readonly #steps = new Map<number, Step>();
  readonly #fences = new Map<number, Fence>();
  readonly #matches = new Map<number, PrefixMatch>();
  readonly #pins = new Map<number, MatchState>();
  readonly #clock: Clock;
  readonly #do: {
    readonly [Op in TraceCommand["op"]]: (c: TraceCommand & { readonly op: Op }) => TracePages | undefined;
  } = {
    open: (c) => {
      const { match: number, priority, expires } = c;
      const match = number === null ? undefined : get(this.#matches, number, "match");
      const owner = match === undefined ? ownerOf(c) : {};
      const sequence = this.cache.open({ ...owner, match, priority, expires });
      this.#sequences.set(c.sequence, sequence);
      return [pagesFrom(stateOf(sequence), 0)];
    },
    match: (c) => {
      const match = this.cache.match(c.ids, { ...ownerOf(c), partial: c.partial });
      this.#matches.set(c.match, match);
      return pagesOf(matchState(match));
    },
    unmatch: (c) => {
      const pin = this.#pins.get(c.match);
      if (pin === undefined) get(this.#matches, c.match, "match")[Symbol.dispose]();
      else unpinPages(cacheState(this.cache), pin);
      return undefined;
    },
    invalidate: (c) => void this.cache.invalidate({ adapter: c.adapter ?? undefined }),
    clock: (c) => {
      this.#clock.now = c.now;
      expirePriorities(cacheState(this.cache));
      return undefined;
    },
    pin: (c) => {
      const state = cacheState(this.cache);
      requirePinnable(state, c);
      const pages = state.groups.map((_, g) => Int32Array.from(c.pages[0]![g]!));
      const pin = pinPages(state, pages, "replay");
      this.#pins.set(c.match, pin);
      return pagesOf(pin);
    },
    insert: (c) => {
      const state = cacheState(this.cache);
      requireBlock(state, c);
      const { parent, present } = c;
      const block = { owner: ownerOf(c), parent, present, ids: Int32Array.from(c.ids) };
      const pages: number[] = [];
      insertBlock(state, get(this.#pins, c.match, "pin"), block, (_, page) => pages.push(page));
      return [[pages]];
    },
    release: (c) => void this.#sequence(c.sequence)[Symbol.dispose](),
    drop: (c) => this.#send(c.sequence, releaseLists),
    empty: (c) => this.#send(c.sequence, emptyLists),
    reserve: (c) => {
      const requests = c.rows.map(([n, tokens]) => ({ sequence: this.#sequence(n), tokens }));
      this.#steps.set(c.step, this.cache.reserve(requests));
      return requests.map(({ sequence }) => pagesFrom(stateOf(sequence), sequence.length));
    },
    commit: (c) => {
      const step = get(this.#steps, c.step, "step");
      step.markWritten();
      step.commit(c.ids ?? undefined);
      this.#steps.delete(c.step);
      return undefined;
    },
    cancel: (c) => {
      const step = get(this.#steps, c.step, "step");
      if (step.isOpen) step.cancel();
      this.#steps.delete(c.step);
      return undefined;
    },
    fork: (c) => void this.#sequences.set(c.fork, this.#sequence(c.sequence).fork()[0]!),
    truncate: (c) => void this.#sequence(c.sequence).truncate(c.length),
    fence: (c) => void this.#fences.set(c.fence, this.cache.fence(c.sequences.map((n) => this.#sequence(n)))),
    lift: (c) => void get(this.#fences, c.fence, "fence")[Symbol.dispose](),
    take: (c) => {
      const state = this.#books(c.sequence);
      const { length, from, sealed } = c;
      const content = { kind: "sequence", length, from, sealed, tokenIds: c.ids ?? [] } as const;
      requireTake(state, c);
      if (c.ids !== null) state.tokenIds = Int32Array.from(c.ids);
      state.away = undefined;
      takeLists(state, content, placesOf(state.cache, content));
      return [pagesFrom(state, 0)];
    },
    reset: () => void this.cache.reset(),
  };
  constructor(header: TraceHeader, engine: ReplayOptions["engine"]) {
    this.#clock = { now: -Infinity };
    this.cache = cacheFor(header, engine, this.#clock);
  }
  /** Does a command; returns the pages that it has given, if it gives any. */
  run(command: TraceCommand): TracePages | undefined {
    return (this.#do[command.op] as (c: TraceCommand) => TracePages | undefined)(command);
  }
  /** Sends a sequence's pages nowhere: the replay has no tier. */
  #send(number: number, give: (state: SequenceState) => void): undefined {
    const state = this.#books(number);
    const { length } = state;
    give(state);
    state.away = { what: "swapped out", length, drop: () => undefined };
  }
  #sequence(number: number): Sequence {
    return get(this.#sequences, number, "sequence");
  }
  #books(number: number): SequenceState {
    return stateOf(this.#sequence(number));
  }
}
/** Throws FormatError unless the line itself lists what is to be taken: a short line cannot ask for a great length. */
function requireTake({ cache, length }: SequenceState, c: TraceCommand & { readonly op: "take" }): void {
  const listed = c.pages[0] ?? [];
  const fits = cache.groups.every(
    ({ layout, sinkPages }, n) =>
      listed[n]?.length === pagesFor(c.length, layout.pageSize) && c.from[n]! >= sinkPages,
  );
  if (
    fits &&
    areSealed(cache, c.length, c.sealed) &&
    length === 0 &&
    (c.ids === null || c.ids.length === c.length)
  )
    return;
  throw new FormatError("[kvcache] the trace brings back a sequence that does not fit its groups", {
    length: c.length,
    from: c.from,
  });
}
function ownerOf({ namespace, adapter }: TraceOwner): PrefixOwner {
  return { namespace, adapter: adapter ?? undefined };
}
/** Throws FormatError unless the pages are published, or none, as many as the groups have at most. */
function requirePinnable({ groups }: CacheState, { pages }: TraceCommand & { readonly op: "pin" }): void {
  const lists = pages[0] ?? [];
  const fits = groups.every(({ pool }, g) =>
    lists[g]?.every((page) => page === NULL_PAGE || pool.content(page) !== 0),
  );
  if (!fits || lists.length !== groups.length)
    throw new FormatError("[kvcache] the trace pins pages that are not published", { pages });
}
/** Throws FormatError unless a block fits the index. */
function requireBlock({ prefixes }: CacheState, c: TraceCommand & { readonly op: "insert" }): void {
  const { parent, ids, present } = c;
  const nodes = prefixes?.nodes;
  const fits = nodes?.blockTokens === ids.length && nodes.pagesPerNode === present.length;
  if (!fits || (parent !== 0 && !(nodes.serial[parent]! > 0)))
    throw new FormatError("[kvcache] the trace puts a block where it does not fit", { parent });
}
function get<T>(map: ReadonlyMap<number, T>, number: number, what: string): T {
  const found = map.get(number);
  if (found !== undefined) return found;
  throw new FormatError(`[kvcache] the trace names ${what} ${number}, which it has not made`, {
    what,
    number,
  });
}
/** Does one line and compares what comes of it. */
function replayLine(replay: Replay, line: TraceLine, at: number): TraceDifference | undefined {
  const differs = (field: string, expected: unknown, found: unknown): TraceDifference | undefined =>
    Bun.deepEquals(expected, found) ? undefined : { line: at, op: line.op, field, expected, found };
  let pages: TracePages | undefined;
  try {
    pages = replay.run(line);
  } catch (error) {
    if (!(error instanceof HeedError) || error instanceof FormatError) throw error;
    return { line: at, op: line.op, field: "error", expected: undefined, found: error };
  }
  const { free, cached, residual } = traceCounts(cacheState(replay.cache));
  return (
    ("pages" in line ? differs("pages", line.pages, pages) : undefined) ??
    differs("free", line.free, free) ??
    differs("cached", line.cached, cached) ??
    differs("residual", line.residual, residual)
  );
}
/**
 * Runs a trace that `cache.record` has written on a new cache, and compares the pages that each command gave and the pages free and
 * cached after it; stops at the first difference. Empty lines are skipped. Throws FormatError for what is no trace, ArgumentError and
 * OutOfMemoryError when its cache cannot be built.
 */
export function replayTrace(lines: Iterable<string>, options: ReplayOptions = {}): ReplayReport {
  let header: TraceHeader | undefined;
  let replay: Replay | undefined;
  let commands = 0;
  let at = 0;
  try {
    for (const text of lines) {
      at++;
      if (text.trim() === "") continue;
      if (replay === undefined) {
        header = parseTraceHeader(text);
        replay = new Replay(header, options.engine);
        continue;
      }
      const line = parseTraceLine(text, at);
      commands++;
      const difference = replayLine(replay, line, at);
      if (difference !== undefined) return { header: header!, commands, difference };
      options.onCommand?.(replay.cache, line, at);
    }
  } finally {
    replay?.cache[Symbol.dispose]();
  }
  if (header === undefined) throw new FormatError("[kvcache] the trace is empty", {});
  return { header, commands, difference: undefined };
}
