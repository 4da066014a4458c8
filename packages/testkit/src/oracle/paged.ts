/** Attention over a paged cache: gather the pages of each sequence, then the contiguous oracle. */
import { requireArgument, requireLength } from "../errors.ts";
import { attentionOracle } from "./attention.ts";
import type { AttentionOracleOptions } from "./attention-problem.ts";

/**
 * Which pages belong to which sequence, and which queries. Sequence n owns queries queryIndptr[n] ..
 * queryIndptr[n+1]-1 and pages indices[indptr[n] .. indptr[n+1]-1], of which the first lengths[n] slots are valid.
 */
export interface PageTable {
  readonly pageSize: number;
  /** [N + 1], rising from 0 to T. */
  readonly queryIndptr: ArrayLike<number>;
  /** [N + 1], rising from 0. */
  readonly indptr: ArrayLike<number>;
  /** Page numbers. */
  readonly indices: ArrayLike<number>;
  /** Valid keys per sequence [N], the queries' own included. */
  readonly lengths: ArrayLike<number>;
}

/** Sizes, page table and attention options of {@link pagedAttentionOracle}; queries stand at the bottom right. */
export interface PagedOracleOptions extends Pick<
  AttentionOracleOptions,
  "scale" | "softcap" | "isCausal" | "window" | "sinkTokens" | "alibiSlopes" | "sinks"
> {
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly table: PageTable;
}

/** What {@link pagedAttentionOracle} returns. */
export interface PagedResult {
  /** [T, Hq, Dv] */
  readonly out: Float64Array;
  /** [T, Hq] */
  readonly lse: Float64Array;
}

/**
 * The rows of one sequence, gathered from pages [P, Hkv, pageSize, width] to [length, Hkv, width]. Throws a
 * TestkitError with code "argument" if the table lists too few pages or a page that does not exist.
 */
export function gatherPages(
  pages: ArrayLike<number>,
  table: PageTable,
  sequence: number,
  { Hkv, width }: { readonly Hkv: number; readonly width: number },
): Float64Array {
  const { pageSize, indptr, indices, lengths } = table;
  const length = lengths[sequence]!;
  const listed = indptr[sequence + 1]! - indptr[sequence]!;
  requireArgument(
    listed * pageSize >= length,
    `[gatherPages] sequence ${sequence} needs ${length} slots; its table lists ${listed} pages of ${pageSize}`,
    { sequence, length, listed, pageSize },
  );
  const gathered = new Float64Array(length * Hkv * width);
  for (let t = 0; t < length; t++) {
    const page = indices[indptr[sequence]! + Math.floor(t / pageSize)]!;
    requireArgument(
      page >= 0 && (page + 1) * Hkv * pageSize * width <= pages.length,
      `[gatherPages] sequence ${sequence} lists page ${page}, which does not exist`,
      { sequence, page },
    );
    for (let h = 0; h < Hkv; h++)
      for (let d = 0; d < width; d++)
        gathered[(t * Hkv + h) * width + d] =
          pages[((page * Hkv + h) * pageSize + (t % pageSize)) * width + d]!;
  }
  return gathered;
}

/**
 * Attention of ragged queries q [T, Hq, D] over kPages [P, Hkv, pageSize, D] and vPages [P, Hkv, pageSize, Dv].
 * Query i of sequence n stands at position lengths[n] - (its query count) + i. Throws a TestkitError with code
 * "argument" for sizes that do not fit.
 */
export function pagedAttentionOracle(
  q: ArrayLike<number>,
  kPages: ArrayLike<number>,
  vPages: ArrayLike<number>,
  options: PagedOracleOptions,
): PagedResult {
  const { Hq, Hkv, D, Dv, table } = options;
  const { queryIndptr, lengths } = table;
  const N = lengths.length;
  requireLength("pagedAttentionOracle", "queryIndptr", queryIndptr, N + 1);
  requireLength("pagedAttentionOracle", "indptr", table.indptr, N + 1);
  const T = queryIndptr[N]!;
  requireLength("pagedAttentionOracle", "q", q, T * Hq * D);
  const out = new Float64Array(T * Hq * Dv);
  const lse = new Float64Array(T * Hq);
  for (let n = 0; n < N; n++) {
    const first = queryIndptr[n]!;
    const S = queryIndptr[n + 1]! - first;
    const rows = Float64Array.from({ length: S * Hq * D }, (_, e) => q[first * Hq * D + e]!);
    const k = gatherPages(kPages, table, n, { Hkv, width: D });
    const v = gatherPages(vPages, table, n, { Hkv, width: Dv });
    const dims = { B: 1, S, Sk: lengths[n]!, Hq, Hkv, D, Dv };
    const one = attentionOracle(rows, k, v, { ...options, dims });
    out.set(one.out, first * Hq * Dv);
    for (let h = 0; h < Hq; h++) for (let i = 0; i < S; i++) lse[(first + i) * Hq + h] = one.lse[h * S + i]!;
  }
  return { out, lse };
}
