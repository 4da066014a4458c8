import {
  ArgumentError,
  type BlockTableReader,
  type Dropout,
  type FloatDType,
  ShapeError,
  show,
  type Tensor,
} from "@heed/tensor";
import type { KeysValuesGradients } from "./gqa-call.ts";
import type { PastKeysValues } from "./gqa-past.ts";
import type { LayerGradients, LayerVjp } from "./layer.ts";
import { checkLengths, checkPast } from "./past-check.ts";

/** What every call of `AttentionHead` may add to x [B, S, hidden]. */
export interface AttentionHeadInputs {
  /** Broadcasts to [B, 1, S, Sk], Sk = P + S: bool (true may attend) or float (added). Column j is token j of a sequence. */
  readonly attnMask?: Tensor | undefined;
  /** int32 [B]: tokens of x in use in each sequence, from the first on; later ones are not seen. Default all. */
  readonly kvLengths?: Tensor<"int32"> | undefined;
  /** Keys and values [B, P, 1, headDim] of earlier tokens, which x's follow. */
  readonly past?: Omit<PastKeysValues, "documents"> | undefined;
  /** Of attention weights. Default none. */
  readonly dropout?: Dropout | undefined;
}
/** What an inference call of `AttentionHead` may add. */
export interface AttentionHeadCall extends AttentionHeadInputs {
  /**
   * The step of a paged cache that x's tokens are: it takes the new keys and values, and the tokens see all that it
   * holds. Excludes the other options.
   */
  readonly cache?: BlockTableReader | undefined;
}
/** What a training call of `AttentionHead` may add. */
export interface AttentionHeadVjpOptions extends AttentionHeadInputs {
  /** As of `GroupedQueryAttention`: "full" (default) also gives the gradients of the past, "oneStep" stops at it. */
  readonly backpropagation?: "full" | "oneStep" | undefined;
  /** Also return the gradient of a float `attnMask`. Default false. */
  readonly attnMaskGradient?: boolean | undefined;
}
/** Gradients of `AttentionHead`. */
export interface AttentionHeadGradients<D extends FloatDType = FloatDType> extends LayerGradients<D> {
  /** Of the past's keys and values, under full backpropagation; 0 in rows that are not in use. */
  readonly past?: KeysValuesGradients<D>;
  /** Of the mask, in its shape and the accumulator's dtype; present when asked for. */
  readonly attnMask?: Tensor;
}
/** A forward pass of `AttentionHead` that can be differentiated. */
export interface AttentionHeadVjp<D extends FloatDType = FloatDType> extends LayerVjp<D> {
  /** All keys and values of the call, for the `past` of the next. They live until this is disposed. */
  readonly present: PastKeysValues<D>;
  /**
   * Gradients of sum(dOutput * output), and of sum(dPresent * present) besides. May be called again. Throws
   * ShapeError, DTypeError, DeviceError, DisposedError.
   */
  backward(
    dOutput: Tensor<NoInfer<D>>,
    dPresent?: KeysValuesGradients<NoInfer<D>>,
  ): AttentionHeadGradients<D>;
}
const WHAT = "AttentionHead";
/** Sizes of a head. */
export interface HeadSizes {
  readonly hiddenSize: number;
  readonly headDim: number;
}

function checkCached(x: Tensor, hiddenSize: number, cache: BlockTableReader, o: AttentionHeadCall): void {
  const tokens = cache.positions.size;
  if (x.size !== tokens * hiddenSize) {
    throw new ShapeError(`[${WHAT}] x must hold the ${tokens} tokens of the cache's step; got ${show(x)}`, {
      x: x.shape,
      tokens,
    });
  }
  for (const name of ["attnMask", "kvLengths", "past", "dropout"] as const) {
    if (o[name] === undefined) continue;
    throw new ArgumentError(`[${WHAT}] ${name} and cache exclude each other`, { [name]: true });
  }
}
/**
 * Checks what a call is given against the layer and each other; attention checks its mask. Throws ShapeError,
 * DTypeError, ArgumentError, DisposedError.
 */
export function checkHeadCall(x: Tensor, o: AttentionHeadCall, sizes: HeadSizes): void {
  const { hiddenSize, headDim } = sizes;
  const { cache, past, kvLengths } = o;
  const rankFits = x.rank === 3 || (x.rank === 2 && cache !== undefined);
  if (!rankFits || x.shape.at(-1) !== hiddenSize) {
    const ragged = cache === undefined ? "" : ` or [T, ${hiddenSize}]`;
    throw new ShapeError(`[${WHAT}] x must be [B, S, ${hiddenSize}]${ragged}; got ${show(x)}`, {
      x: x.shape,
      hiddenSize,
    });
  }
  if (cache !== undefined) return checkCached(x, hiddenSize, cache, o);
  if (past !== undefined) {
    if ("documents" in past && past.documents !== undefined)
      throw new ArgumentError(`[${WHAT}] past.documents are for GroupedQueryAttention`, { documents: true });
    checkPast(WHAT, x, past, { numKvHeads: 1, headDim });
  }
  if (kvLengths !== undefined) checkLengths(WHAT, "kvLengths", kvLengths, x.shape[0]!, x.shape[1]!);
}
/** Throws ArgumentError for a paged cache in a call that has no use for one, or a mode that there is not. */
export function checkHeadTraining(
  method: string,
  { cache, backpropagation: mode = "full" }: AttentionHeadCall & AttentionHeadVjpOptions,
): void {
  if (cache !== undefined)
    throw new ArgumentError(`[${WHAT}] ${method} takes no cache; give keys and values as past`, {
      cache: true,
    });
  if (mode !== "full" && mode !== "oneStep") {
    throw new ArgumentError(`[${WHAT}] backpropagation must be "full" or "oneStep"; got ${String(mode)}`, {
      backpropagation: mode,
    });
  }
}
/** Throws ShapeError unless an upstream gradient has the output's shape. */
export function checkUpstream(dOutput: Tensor, shape: readonly number[]): void {
  if (dOutput.shape.join() === shape.join()) return;
  throw new ShapeError(
    `[${WHAT} backward] dOutput must be the output's [${shape.join(", ")}]; got ${show(dOutput)}`,
    { dOutput: dOutput.shape, output: shape },
  );
}
