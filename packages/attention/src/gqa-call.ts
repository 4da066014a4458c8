import {
  ArgumentError,
  type BlockTableReader,
  type Dropout,
  type FloatDType,
  ShapeError,
  show,
  type Tensor,
} from "@heed/tensor";
import type { GroupedQueryAttentionConfig } from "./gqa-options.ts";
import type { PastKeysValues } from "./gqa-past.ts";
import type { LayerGradients, LayerVjp } from "./layer.ts";
import { checkInts, checkLengths, checkPast, checkShape } from "./past-check.ts";
import type { Positions } from "./rope.ts";

/** What every call of `GroupedQueryAttention` may say besides x [B, S, hidden]. */
export interface GroupedQueryAttentionInputs {
  /**
   * Where x's tokens stand, for the rotation: see {@link Positions}. By default they follow the past, or start
   * at 0. Beside a cache a tensor of one for each token of the step, [T] or [B, S], or with `sections` of three,
   * [3, T] or [3, B, S]; by default the cache's. The mask goes by the order of tokens.
   */
  readonly positions?: Positions | undefined;
  /**
   * Broadcasts to [B, Hq, S, Sk]: bool (true may attend) or float (added). Column j is token j of a sequence,
   * its past first: Sk = P + S, or P + the context's length.
   */
  readonly attnMask?: Tensor | undefined;
  /**
   * int32 [B]: tokens of x in use in each sequence (of the context in cross attention), from the first on;
   * later ones are not seen. Default all.
   */
  readonly kvLengths?: Tensor<"int32"> | undefined;
  /** Keys and values of earlier tokens, which x's follow; in cross attention, of a context. */
  readonly past?: PastKeysValues | undefined;
  /** [B, Sk, contextSize], whose keys and values a layer of cross attention attends over. */
  readonly context?: Tensor | undefined;
  /** Where the context's tokens stand, for a layer with `rotateContext`. By default from 0. */
  readonly contextPositions?: Positions | undefined;
  /**
   * int32 [B, S]: the document of each token of x, see `documentIds`; tokens see those of their own alone. A
   * document's tokens are neighbours. Positions do not start again unless `positions` says so, see
   * `documentPositions`. Takes a mask of B * S * Sk bytes.
   */
  readonly documents?: Tensor<"int32"> | undefined;
  /** int32 [B, Sk]: the document of each token of the context, where x has `documents`. */
  readonly contextDocuments?: Tensor<"int32"> | undefined;
}
/** What a training call of `GroupedQueryAttention` may say. */
export interface GroupedQueryAttentionVjpOptions extends GroupedQueryAttentionInputs {
  /**
   * "full" (default): backward also gives the gradients of the past. "oneStep": the one-step approximation of
   * recurrent use (Wang et al. 2025, section 2, arXiv:2506.21734): gradients stop at the past.
   */
  readonly backpropagation?: "full" | "oneStep" | undefined;
  /** Also return the gradient of a float `attnMask`. Default false. */
  readonly attnMaskGradient?: boolean | undefined;
  /** Of attention weights. Default none. */
  readonly dropout?: Dropout | undefined;
}
/** What an inference call of `GroupedQueryAttention` may say. */
export interface GroupedQueryAttentionCall extends GroupedQueryAttentionInputs {
  /**
   * The step of a paged cache that x's tokens are: it gives positions and lengths, takes the new keys and
   * values, and the tokens see all that it holds. Excludes the other options but `positions`, for a rotation by
   * others than the cache's.
   */
  readonly cache?: BlockTableReader | undefined;
}
/** Gradients of keys and values [B, n, Hkv, D]. */
export interface KeysValuesGradients<D extends FloatDType = FloatDType> {
  readonly k: Tensor<D>;
  readonly v: Tensor<D>;
}
/** Gradients of `GroupedQueryAttention`: of x, the parameters, and what else the call was given. */
export interface GroupedQueryAttentionGradients<D extends FloatDType = FloatDType> extends LayerGradients<D> {
  /** Of the context. */
  readonly context?: Tensor<D>;
  /** Of the past's keys and values, under full backpropagation; 0 in rows that are not in use. */
  readonly past?: KeysValuesGradients<D>;
  /** Of the mask, in its shape and the accumulator's dtype; present when asked for. */
  readonly attnMask?: Tensor;
}
/** A forward pass of `GroupedQueryAttention` that can be differentiated. */
export interface GroupedQueryAttentionVjp<D extends FloatDType = FloatDType> extends LayerVjp<D> {
  /**
   * All keys and values of the call, for the `past` of the next. They live until this is disposed; take an alias
   * to keep them longer.
   */
  readonly present: PastKeysValues<D>;
  /**
   * Gradients of sum(dOutput * output), and of sum(dPresent * present) besides: the next call's gradients of its
   * past. May be called again. Throws ShapeError, DTypeError, DeviceError, DisposedError.
   */
  backward(
    dOutput: Tensor<NoInfer<D>>,
    dPresent?: KeysValuesGradients<NoInfer<D>>,
  ): GroupedQueryAttentionGradients<D>;
}
const WHAT = "GroupedQueryAttention";
const CACHE_GIVES = [
  "attnMask",
  "kvLengths",
  "past",
  "documents",
] as const satisfies readonly (keyof GroupedQueryAttentionInputs)[];

function refuse(why: string, details: Record<string, unknown> = {}): never {
  throw new ArgumentError(`[${WHAT}] ${why}`, details);
}
/**
 * Throws ShapeError unless x is [B, S, hidden], or [T, hidden] beside a cache, and as long as the cache's step;
 * ArgumentError for options that a cache gives itself.
 */
function checkX(x: Tensor, hiddenSize: number, o: GroupedQueryAttentionCall): void {
  const { cache } = o;
  const rankFits = x.rank === 3 || (x.rank === 2 && cache !== undefined);
  if (!rankFits || x.shape.at(-1) !== hiddenSize) {
    const ragged = cache === undefined ? "" : ` or [T, ${hiddenSize}]`;
    throw new ShapeError(`[${WHAT}] x must be [B, S, ${hiddenSize}]${ragged}; got ${show(x)}`, {
      x: x.shape,
      hiddenSize,
    });
  }
  if (cache === undefined) return;
  const tokens = cache.positions.size;
  if (x.size !== tokens * hiddenSize) {
    throw new ShapeError(`[${WHAT}] x must hold the ${tokens} tokens of the cache's step; got ${show(x)}`, {
      x: x.shape,
      tokens,
    });
  }
  for (const name of CACHE_GIVES)
    if (o[name] !== undefined)
      refuse(`${name} and cache exclude each other: a cache gives its own`, { [name]: true });
}
function checkContext(x: Tensor, o: GroupedQueryAttentionCall, c: GroupedQueryAttentionConfig): void {
  const { context, past, cache, contextPositions } = o;
  if (c.contextSize === null) {
    for (const name of ["context", "contextPositions", "contextDocuments"] as const)
      if (o[name] !== undefined) refuse(`${name} needs a layer with contextSize`, { [name]: true });
    return;
  }
  if (cache !== undefined)
    refuse("a layer with contextSize takes no cache; give the context's keys and values as past");
  if (context === undefined && past === undefined)
    refuse("a layer with contextSize needs context, or past: see contextKeysValues");
  if (contextPositions !== undefined && !c.rotateContext)
    refuse("contextPositions needs a layer with rotateContext");
  if (context === undefined) return;
  const rows = context.shape[1] ?? 0;
  checkShape(WHAT, "context", context, [x.shape[0]!, rows, c.contextSize], "[B, Sk, contextSize]");
}
/** Every key needs a document where queries have one. */
function checkDocuments(x: Tensor, o: GroupedQueryAttentionCall, c: GroupedQueryAttentionConfig): void {
  const { documents, contextDocuments, context, past } = o;
  if (documents === undefined) {
    const [name] = [contextDocuments && "contextDocuments", past?.documents && "past.documents"].filter(
      Boolean,
    );
    if (name !== undefined) refuse(`${name} needs documents, those of x`);
    return;
  }
  const [B, S] = x.shape as [number, number];
  checkInts(WHAT, "documents", documents, [B, S], "[B, S]");
  if (past !== undefined && past.documents === undefined) refuse("documents beside past need past.documents");
  if (c.contextSize === null || context === undefined) return;
  if (contextDocuments === undefined) refuse("documents beside context need contextDocuments");
  checkInts(WHAT, "contextDocuments", contextDocuments, [B, context.shape[1]!], "[B, Sk]");
}
/**
 * Checks what a call is given against the layer and each other; masks and rotation check theirs. Throws
 * ShapeError, DTypeError, ArgumentError, DisposedError.
 */
export function checkCall(x: Tensor, o: GroupedQueryAttentionCall, c: GroupedQueryAttentionConfig): void {
  checkX(x, c.hiddenSize, o);
  checkContext(x, o, c);
  if (o.cache !== undefined) return;
  if (o.past !== undefined) checkPast(WHAT, x, o.past, c);
  checkDocuments(x, o, c);
  if (o.kvLengths === undefined) return;
  const source = c.contextSize === null ? x : o.context;
  if (source === undefined) refuse("kvLengths counts the context's tokens; a past has lengths of its own");
  checkLengths(WHAT, "kvLengths", o.kvLengths, x.shape[0]!, source.shape[1]!);
}
/** Throws ArgumentError when a call that has no use for a paged cache is given one. */
export function noCache(method: string, options: GroupedQueryAttentionCall): void {
  if (options.cache !== undefined)
    refuse(`${method} takes no cache: it needs the keys and values of this call, and given ones as past`);
}
/** Throws ArgumentError for a mode of backpropagation that there is not. */
export function checkMode({ backpropagation: mode = "full" }: GroupedQueryAttentionVjpOptions): void {
  if (mode !== "full" && mode !== "oneStep")
    refuse(`backpropagation must be "full" or "oneStep"; got ${String(mode)}`, { backpropagation: mode });
}
