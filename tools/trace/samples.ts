import type { GroupStats, KvCache, ReplayReport, TraceLine } from "@heed/kvcache";

/** What a page can be, from the bottom of the picture to the top. */
export const STATES = ["live", "pinned", "inFlight", "cached", "free"] as const;
export type PageState = (typeof STATES)[number];
/** Pages of one group by what they were after a command. */
export type Counts = Readonly<Record<PageState, number>>;
/** All groups after a command. */
export interface Sample {
  readonly command: number;
  readonly groups: readonly Counts[];
}
/** What was seen of a group over a whole trace. */
export interface GroupSummary {
  readonly pages: number;
  readonly peakLive: number;
  readonly peakCached: number;
  readonly leastFree: number;
  /** Mean share of rows in live pages without a token, over the samples. */
  readonly waste: number;
}
/** The pages of a group by what they are. */
export function countsOf(g: GroupStats): Counts {
  return {
    live: g.usedPages,
    pinned: g.pinnedPages,
    inFlight: g.inFlightPages,
    cached: g.cachedPages,
    free: g.freePages,
  };
}

/** Looks at the pools at most `most` times over a trace of `commands` commands: a look costs time in proportion to the pages. */
export class Sampler {
  readonly samples: Sample[] = [];
  readonly operations: Map<string, number> = new Map();
  readonly #stride: number;
  readonly #commands: number;
  readonly #waste: number[] = [];
  #seen = 0;
  constructor(commands: number, most: number) {
    this.#commands = commands;
    this.#stride = Math.max(1, Math.ceil(commands / most));
  }
  /** To be called after each command. */
  readonly see = (cache: KvCache, { op }: TraceLine): void => {
    this.operations.set(op, (this.operations.get(op) ?? 0) + 1);
    this.#seen++;
    if (this.#seen % this.#stride !== 0 && this.#seen !== this.#commands) return;
    const { groups } = cache.stats();
    groups.forEach((g, n) => (this.#waste[n] = (this.#waste[n] ?? 0) + g.waste));
    this.samples.push({ command: this.#seen, groups: groups.map(countsOf) });
  };
  /** Each group over the samples. */
  summaries({ header }: ReplayReport): GroupSummary[] {
    return header.groups.map(({ maxPages }, n) => {
      const of = (state: PageState): number[] => this.samples.map((s) => s.groups[n]![state]);
      return {
        pages: maxPages,
        peakLive: Math.max(0, ...of("live")),
        peakCached: Math.max(0, ...of("cached")),
        leastFree: Math.min(maxPages, ...of("free")),
        waste: this.samples.length === 0 ? 0 : this.#waste[n]! / this.samples.length,
      };
    });
  }
}
