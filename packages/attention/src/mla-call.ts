import {
  ArgumentError,
  type BlockTableReader,
  type Dropout,
  hostIntegers,
  type PagedView,
  type PageTable,
  recheck,
  ShapeError,
  show,
  type Tensor,
} from "@heed/tensor";
import type { MultiHeadLatentAttentionConfig } from "./mla-options.ts";
import type { Positions } from "./rope.ts";

const WHAT = "MultiHeadLatentAttention";

/** What every call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionInputs {
  /** Where the tokens stand, for the rotation: see {@link Positions}. Default 0. The mask goes by the order of tokens. */
  readonly positions?: Positions | undefined;
  /** Broadcasts to [B, H, S, S]: bool (true may attend) or float (added). */
  readonly attnMask?: Tensor | undefined;
  /** int32 [B]: tokens in use of each sequence, from the first on; later ones are not seen. Default S. */
  readonly kvLengths?: Tensor<"int32"> | undefined;
}
/** What a training call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionVjpOptions extends MultiHeadLatentAttentionInputs {
  /** Of attention weights. Default none. */
  readonly dropout?: Dropout | undefined;
}
/** What an inference call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionCall extends MultiHeadLatentAttentionInputs {
  /**
   * The step of a paged cache that x's tokens are, of the layer's `cacheLayout`: it gives positions and lengths, takes the new rows,
   * and the tokens see all that it holds. Excludes the other options.
   */
  readonly cache?: BlockTableReader | undefined;
  /**
   * Beside a cache: expand keys and values (true), which all sequences of the step must then begin with, or stay absorbed (false), as a
   * tape over chunks of a prefill needs it. Default: expand where that is possible and a sequence has more than one token, since the
   * absorbed form costs (2 R + Dr) / (Dn + Dr + Dv) as much a key, 3.4 times in DeepSeek-V3.
   */
  readonly expand?: boolean | undefined;
}
/** Throws ShapeError unless x is [B, S, hidden], or [T, hidden] beside a cache, and as long as the cache's step. */
export function checkLatentInput(x: Tensor, hiddenSize: number, cache: BlockTableReader | undefined): void {
  const rankFits = x.rank === 3 || (x.rank === 2 && cache !== undefined);
  if (!rankFits || x.shape.at(-1) !== hiddenSize) {
    const ragged = cache === undefined ? "" : ` or [T, ${hiddenSize}]`;
    throw new ShapeError(`[${WHAT}] x must be [B, S, ${hiddenSize}]${ragged}; got ${show(x)}`, {
      x: x.shape,
      hiddenSize,
    });
  }
  const tokens = cache?.positions.size;
  if (tokens === undefined || x.size === tokens * hiddenSize) return;
  throw new ShapeError(`[${WHAT}] x must hold the ${tokens} tokens of the cache's step; got ${show(x)}`, {
    x: x.shape,
    tokens,
  });
}
/** Throws ArgumentError when a call says what its cache says already, or without a cache what only one needs. */
export function checkLatentCall(options: MultiHeadLatentAttentionCall): void {
  if (options.cache === undefined) {
    if (options.expand !== undefined) refuse("expand is for calls with a cache; others are expanded anyway");
    return;
  }
  for (const name of ["positions", "attnMask", "kvLengths"] as const) {
    if (options[name] === undefined) continue;
    throw new ArgumentError(`[${WHAT}] ${name} and cache exclude each other: a cache gives its own`, {
      [name]: true,
    });
  }
}
/** Throws ShapeError unless the pages hold latent rows: [P, 1, pageSize, R + Dr], the first R columns as values. */
export function checkLatentView(
  { kPages, vPages }: PagedView,
  c: Pick<MultiHeadLatentAttentionConfig, "kvLoraRank" | "qkRopeHeadDim">,
): void {
  const fits = (t: Tensor, width: number): boolean =>
    t.rank === 4 && t.shape[1] === 1 && t.shape[3] === width;
  if (fits(kPages, c.kvLoraRank + c.qkRopeHeadDim) && fits(vPages, c.kvLoraRank)) return;
  throw new ShapeError(
    `[${WHAT}] the cache must hold latent rows, as the layer's cacheLayout says: kPages [P, 1, pageSize, ${c.kvLoraRank + c.qkRopeHeadDim}], vPages [P, 1, pageSize, ${c.kvLoraRank}]; got ${show(kPages)}, ${show(vPages)}`,
    { kPages: kPages.shape, vPages: vPages.shape },
  );
}
/** Where the rows of each sequence start, and the end [N + 1], when no sequence has a row that is older than the step; else undefined. */
function beginnings([queryIndptr, lengths]: readonly Tensor[]): number[] | undefined {
  const starts = Array.from(hostIntegers(queryIndptr!), Number);
  const ends = Array.from(hostIntegers(lengths!), (n, i) => starts[i]! + Number(n));
  return ends.every((end, i) => end === starts[i + 1]) ? starts : undefined;
}
/**
 * Row ranges [N + 1] of a step's sequences when it is to be computed in expanded form; undefined for the absorbed one. Throws
 * ArgumentError when the call asks for the expanded form of a step whose sequences have a past, or whose table is not on the host.
 */
export function expandedRows(
  { queryIndptr, lengths, slots }: PageTable,
  expand: boolean | undefined,
): readonly number[] | undefined {
  const isDecode = slots.size <= lengths.size;
  if (expand === false || (expand === undefined && isDecode)) return undefined;
  const table = [queryIndptr, lengths];
  const rows = queryIndptr.engine.device === "cpu" ? beginnings(table) : undefined;
  if (rows !== undefined) {
    recheck(table, (now) => {
      if (beginnings(now)?.join() !== rows.join())
        refuse(
          "the tape was recorded over sequences that begin with their step; record it with expand: false",
        );
    });
  } else if (expand === true)
    refuse("expand needs sequences that begin with the step, and a table on the host");
  return rows;
}
function refuse(why: string): never {
  throw new ArgumentError(`[${WHAT}] ${why}`, { expand: true });
}
