import type { CacheStats } from "@heed/kvcache";
import { countsOf, type Sample as PoolSample } from "../trace/samples.ts";

/** What the cache held after a step. */
export interface Sample extends PoolSample {
  /** Committed tokens of all sequences; shared ones count for each. */
  readonly tokens: number;
  readonly sequences: number;
  /** Pages of sequences, and the share of their rows without a token. */
  readonly usedPages: number;
  readonly waste: number;
  readonly evictedPages: number; // since the start
  /** Tokens of prompts since the start, and those of them that were found. */
  readonly promptTokens: number;
  readonly foundTokens: number;
}
/** A sample of a cache that keeps prefixes. */
export function sampleOf(
  step: number,
  stats: CacheStats,
  { promptTokens, foundTokens }: { readonly promptTokens: number; readonly foundTokens: number },
): Sample {
  const { tokens, sequences, usedPages, waste } = stats;
  const { evictedPages } = stats.prefixes!;
  const counts = { tokens, sequences, usedPages, waste, evictedPages, promptTokens, foundTokens };
  return { command: step, groups: stats.groups.map(countsOf), ...counts };
}
/** Means over the samples, each weighed by its pages in use. */
export function means(
  samples: readonly Sample[],
  pageSize: number,
): {
  /** Share of the rows of pages in use without a token. */
  readonly waste: number;
  /** Tokens that sequences see for each row of their pages: above 1 only by sharing. */
  readonly tokensPerRow: number;
  /** Tokens of a sequence at a moment. */
  readonly length: number;
} {
  const sum = (of: (s: Sample) => number): number => samples.reduce((total, s) => total + of(s), 0);
  const used = sum((s) => s.usedPages) || 1;
  return {
    waste: sum((s) => s.waste * s.usedPages) / used,
    tokensPerRow: sum((s) => s.tokens) / (used * pageSize),
    length: sum((s) => s.tokens) / (sum((s) => s.sequences) || 1),
  };
}
