import {
  ArgumentError,
  type BlockTableReader,
  type Dropout,
  DTypeError,
  hostIntegers,
  type PagedView,
  type Pages,
  type PageTable,
  recheck,
  ShapeError,
  show,
  showPages,
  Tensor,
} from "@heed/tensor";
import type { MultiHeadLatentAttentionConfig } from "./mla-options.ts";
import type { PastLatentRows } from "./mla-past.ts";
import { checkInts, checkLengths, checkShape } from "./past-check.ts";
import type { Positions } from "./rope.ts";

const WHAT = "MultiHeadLatentAttention";

/** What every call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionInputs {
  /**
   * Where x's tokens stand, for the rotation: see {@link Positions}. By default they follow the past, or start at 0; beside a cache as its
   * step says, and other ones are int32 [T] or [B, S] (with `sections` [3, T] or [3, B, S]). The mask goes by the order of tokens.
   */
  readonly positions?: Positions | undefined;
  /**
   * Broadcasts to [B, H, S, Sk], Sk = P + S: bool (true may attend) or float (added). Column j is token j of a sequence, its past first.
   */
  readonly attnMask?: Tensor | undefined;
  /** int32 [B]: tokens of x in use in each sequence, from the first on; later ones are not seen. Default S. */
  readonly kvLengths?: Tensor<"int32"> | undefined;
  /** Latent rows and rotary keys of earlier tokens, which x's follow. */
  readonly past?: PastLatentRows | undefined;
  /**
   * int32 [B, S]: the document of each token of x, see `documentIds`; tokens see those of their own alone. A document's tokens are
   * neighbours. Positions do not start again unless `positions` says so, see `documentPositions`. Takes a mask of B * S * Sk bytes.
   */
  readonly documents?: Tensor<"int32"> | undefined;
}
/** What a training call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionVjpOptions extends MultiHeadLatentAttentionInputs {
  /**
   * As of `GroupedQueryAttention`: "full" (default) also gives the gradients of the past, "oneStep" stops at it. The expansion of past
   * rows is this call's own, and counts in the gradient of "kv_b_proj.weight" either way.
   */
  readonly backpropagation?: "full" | "oneStep" | undefined;
  /** Also return the gradient of a float `attnMask`. Default false. */
  readonly attnMaskGradient?: boolean | undefined;
  /** Of attention weights. Default none. */
  readonly dropout?: Dropout | undefined;
}
/** What an inference call of `MultiHeadLatentAttention` may say. */
export interface MultiHeadLatentAttentionCall extends MultiHeadLatentAttentionInputs {
  /**
   * The step of a paged cache that x's tokens are, of the layer's `cacheLayout`: it gives positions and lengths, takes the new rows,
   * and the tokens see all that it holds. Excludes the other options but `positions`.
   */
  readonly cache?: BlockTableReader | undefined;
  /**
   * Beside a cache: expand keys and values (true), which all sequences of the step must then begin with, or stay absorbed (false), as a
   * tape over chunks of a prefill needs it. Default: expand where that is possible and a sequence has more than one token, since the
   * absorbed form costs (2 R + Dr) / (Dn + Dr + Dv) as much a key, 3.4 times in DeepSeek-V3.
   */
  readonly expand?: boolean | undefined;
}
type Sizes = Pick<MultiHeadLatentAttentionConfig, "hiddenSize" | "kvLoraRank" | "qkRopeHeadDim">;

/** Throws ShapeError unless x is [B, S, hidden], or [T, hidden] beside a cache, and as long as the cache's step. */
function checkInput(x: Tensor, hiddenSize: number, cache: BlockTableReader | undefined): void {
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
function checkPast(x: Tensor, past: PastLatentRows, { kvLoraRank, qkRopeHeadDim }: Sizes): void {
  const B = x.shape[0]!;
  const P = past.latent.shape[1] ?? 0;
  checkShape(WHAT, "past.latent", past.latent, [B, P, kvLoraRank], "[B, P, R]");
  checkShape(WHAT, "past.rotaryKey", past.rotaryKey, [B, P, qkRopeHeadDim], "[B, P, Dr]");
  for (const name of ["latent", "rotaryKey"] as const) {
    if (past[name].dtype === x.dtype) continue;
    throw new DTypeError(
      `[${WHAT}] past.${name} must have x's dtype; got ${show(past[name])} for x ${show(x)}`,
      { dtypes: [past[name].dtype, x.dtype] },
    );
  }
  if (past.lengths !== undefined) checkLengths(WHAT, "past.lengths", past.lengths, B, P);
  if (past.documents !== undefined) checkInts(WHAT, "past.documents", past.documents, [B, P], "[B, P]");
}
/** Every key needs a document where queries have one. */
function checkDocuments(x: Tensor, { documents, past }: MultiHeadLatentAttentionInputs): void {
  if (documents === undefined) {
    if (past?.documents !== undefined) refuse("past.documents needs documents", { documents: true });
    return;
  }
  checkInts(WHAT, "documents", documents, [x.shape[0]!, x.shape[1]!], "[B, S]");
  if (past !== undefined && past.documents === undefined)
    refuse("documents beside past need past.documents", { documents: true });
}
/** Throws ArgumentError for what a cache says already, or what only a call with one needs. */
function checkCached(o: MultiHeadLatentAttentionCall): void {
  if (o.cache === undefined) {
    if (o.expand !== undefined)
      refuse("expand is for calls with a cache; others are expanded anyway", { expand: o.expand });
    return;
  }
  for (const name of ["attnMask", "kvLengths", "past", "documents"] as const)
    if (o[name] !== undefined)
      refuse(`${name} and cache exclude each other: a cache gives its own`, { [name]: true });
}
/**
 * Checks what a call is given against the layer and each other; mask and rotation check theirs. Throws ShapeError, DTypeError,
 * ArgumentError, DisposedError.
 */
export function checkLatentCall(x: Tensor, o: MultiHeadLatentAttentionCall, sizes: Sizes): void {
  checkInput(x, sizes.hiddenSize, o.cache);
  checkCached(o);
  if (o.cache !== undefined) return;
  if (o.past !== undefined) checkPast(x, o.past, sizes);
  checkDocuments(x, o);
  if (o.kvLengths !== undefined) checkLengths(WHAT, "kvLengths", o.kvLengths, x.shape[0]!, x.shape[1]!);
}
/** Throws ArgumentError when a call that has no use for a paged cache is given one, and for a mode of backpropagation that there is not. */
export function checkLatentMethod(
  method: string,
  {
    cache,
    backpropagation: mode = "full",
  }: MultiHeadLatentAttentionCall & MultiHeadLatentAttentionVjpOptions,
): void {
  if (cache !== undefined)
    refuse(`${method} takes no cache: it needs the rows of this call, and given ones as past`, {
      cache: true,
    });
  if (mode !== "full" && mode !== "oneStep")
    refuse(`backpropagation must be "full" or "oneStep"; got ${String(mode)}`, { backpropagation: mode });
}
/** Throws ShapeError unless the pages hold latent rows: [P, 1, pageSize, R + Dr], the first R columns as values. */
export function checkLatentView(
  { kPages, vPages }: PagedView<Pages>,
  c: Pick<MultiHeadLatentAttentionConfig, "kvLoraRank" | "qkRopeHeadDim">,
): void {
  const fits = (pages: Pages, width: number): boolean => {
    const { rank, shape } = pages instanceof Tensor ? pages : pages.codes;
    return rank === 4 && shape[1] === 1 && shape[3] === width;
  };
  if (fits(kPages, c.kvLoraRank + c.qkRopeHeadDim) && fits(vPages, c.kvLoraRank)) return;
  throw new ShapeError(
    `[${WHAT}] the cache must hold latent rows, as the layer's cacheLayout says: kPages [P, 1, pageSize, ${c.kvLoraRank + c.qkRopeHeadDim}], vPages [P, 1, pageSize, ${c.kvLoraRank}]; got ${showPages(kPages)}, ${showPages(vPages)}`,
    { kPages: showPages(kPages), vPages: showPages(vPages) },
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
function refuse(why: string, details: Readonly<Record<string, unknown>> = { expand: true }): never {
  throw new ArgumentError(`[${WHAT}] ${why}`, details);
}
