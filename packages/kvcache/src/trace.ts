import type { Retention } from "./block-pool.ts";
import type { InsertedBlock } from "./prefix-load.ts";
import type { MatchState } from "./prefix-match.ts";
import type { MatchOptions, OpenOptions } from "./prefixes.ts";
import type { CacheState, OpenFence, OpenStep, SequenceState } from "./state.ts";

/** What a command did, by the cache's own books; the recorder gives them numbers. Told once it has been done. */
export type Command =
  | { readonly op: "open"; readonly sequence: SequenceState; readonly options: OpenOptions }
  | { readonly op: "release" | "drop" | "empty"; readonly sequence: SequenceState }
  | {
      readonly op: "match";
      readonly match: MatchState;
      readonly wanted: ArrayLike<number>;
      readonly options: MatchOptions;
    }
  | { readonly op: "unmatch"; readonly match: MatchState }
  | { readonly op: "invalidate"; readonly adapter: string | undefined }
  | { readonly op: "clock"; readonly now: number }
  | { readonly op: "pin"; readonly match: MatchState }
  | ({ readonly op: "insert"; readonly match: MatchState } & InsertedBlock)
  | {
      readonly op: "reserve";
      readonly step: OpenStep;
      readonly rows: readonly (readonly [SequenceState, number])[];
    }
  | { readonly op: "commit"; readonly step: OpenStep; readonly ids: ArrayLike<number> | undefined }
  | { readonly op: "cancel"; readonly step: OpenStep }
  | { readonly op: "fork"; readonly sequence: SequenceState; readonly fork: SequenceState }
  | { readonly op: "truncate"; readonly sequence: SequenceState; readonly length: number }
  | { readonly op: "fence"; readonly fence: OpenFence; readonly sequences: Iterable<SequenceState> }
  | { readonly op: "lift"; readonly fence: OpenFence }
  | {
      readonly op: "take";
      readonly sequence: SequenceState;
      readonly from: readonly number[];
      readonly sealed: readonly number[] | undefined;
    }
  | { readonly op: "reset" };
/** Sees the commands of a cache. */
export type Observer = (command: Command) => void;

/** The first line of a trace: what a cache must be to replay it. Pages only count, so rows of one number do. */
export interface TraceHeader {
  readonly trace: "heed-kvcache";
  readonly version: 1;
  readonly groups: readonly {
    readonly pageSize: number;
    readonly window: number | null;
    readonly sinks: number;
    readonly maxPages: number;
    /** Residual pages of an "int4" group; absent in any other. */
    readonly residualPages?: number | undefined;
  }[];
  readonly draftMargin: number;
  /** Quotas of a cache that keeps prefixes, else null. */
  readonly prefixes: {
    readonly quota: number | null;
    readonly quotas: Readonly<Record<string, number>>;
  } | null;
}
/** What every further line says of the pools after its command, per group. */
export interface TraceCounts {
  readonly free: readonly number[];
  readonly cached: readonly number[];
  /** Free residual pages, 0 where a group has none; absent in a cache without "int4" groups. */
  readonly residual?: readonly number[] | undefined;
}
/** Commands in a trace, with numbers in the order in which sequences, steps and fences were made. */
export type TraceCommand =
  | ({
      readonly op: "open";
      readonly sequence: number;
      readonly match: number | null;
      readonly pages: TracePages;
    } & TraceOwner &
      Retention)
  | { readonly op: "release" | "drop" | "empty"; readonly sequence: number }
  | ({
      readonly op: "match";
      readonly match: number;
      readonly ids: readonly number[];
      readonly partial: boolean;
      readonly pages: TracePages;
    } & TraceOwner)
  | { readonly op: "unmatch"; readonly match: number }
  | { readonly op: "invalidate"; readonly adapter: string | null }
  /** The clock stood here when priorities ended. */
  | { readonly op: "clock"; readonly now: number }
  /** Pages that are being saved. */
  | { readonly op: "pin"; readonly match: number; readonly pages: TracePages }
  /** A block of a file behind the node `parent`, 0 for none, in the care of a pin. */
  | ({
      readonly op: "insert";
      readonly match: number;
      readonly parent: number;
      readonly ids: readonly number[];
      readonly present: readonly boolean[];
      readonly pages: TracePages;
    } & TraceOwner)
  | {
      readonly op: "reserve";
      readonly step: number;
      /** Sequence and number of new tokens. */
      readonly rows: readonly (readonly [number, number])[];
      readonly pages: TracePages;
    }
  | { readonly op: "commit"; readonly step: number; readonly ids: readonly number[] | null }
  | { readonly op: "cancel"; readonly step: number }
  | { readonly op: "fork"; readonly sequence: number; readonly fork: number }
  | { readonly op: "truncate"; readonly sequence: number; readonly length: number }
  | { readonly op: "fence"; readonly fence: number; readonly sequences: readonly number[] }
  | { readonly op: "lift"; readonly fence: number }
  | {
      readonly op: "take";
      readonly sequence: number;
      readonly length: number;
      readonly from: readonly number[];
      /** First position that is not encoded, for each group; absent without "int4" groups. */
      readonly sealed?: readonly number[] | undefined;
      readonly ids: readonly number[] | null;
      readonly pages: TracePages;
    }
  | { readonly op: "reset" };
/** Whose prefixes; null for no adapter. */
export interface TraceOwner {
  readonly namespace: string;
  readonly adapter: string | null;
}
/** For each sequence, for each group, the last pages of its list: all that a command may have changed. */
export type TracePages = readonly (readonly (readonly number[])[])[];

/** The first line for a cache. */
export function traceHeader({ groups, layout, prefixes }: CacheState): TraceHeader {
  const { quota = Infinity, quotas = {} } = prefixes?.options ?? {};
  return {
    trace: "heed-kvcache",
    version: 1,
    groups: groups.map(({ layout: g, pool, residuals }) => ({
      pageSize: g.pageSize,
      window: g.window === Infinity ? null : g.window,
      sinks: g.sinks,
      maxPages: pool.count,
      ...(residuals && { residualPages: residuals.pool.count }),
    })),
    draftMargin: layout.draftMargin,
    prefixes: prefixes === undefined ? null : { quota: quota === Infinity ? null : quota, quotas },
  };
}
/** Free and cached pages of each group, and free residual pages. */
export function traceCounts({ groups }: CacheState): TraceCounts {
  const residual = groups.map(({ residuals }) => residuals?.pool.free ?? 0);
  return {
    free: groups.map(({ pool }) => pool.free),
    cached: groups.map(({ pool }) => pool.cached),
    ...(groups.some(({ residuals }) => residuals !== undefined) && { residual }),
  };
}
/** Pages of a sequence from the one that holds row `length` on, in each group. */
export function pagesFrom({ cache, lists }: SequenceState, length: number): number[][] {
  return cache.groups.map(({ layout }, n) => {
    const { ids, count } = lists[n]!;
    return [...ids.subarray(Math.floor(length / layout.pageSize), count)];
  });
}

/** A match's pages as a trace has them. */
export function pagesOf({ pages }: MatchState): TracePages {
  return [pages.map((list) => [...list])];
}
