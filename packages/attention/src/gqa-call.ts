import { type BlockTableReader, ShapeError, show, type Tensor } from "@heed/tensor";
import type { Positions } from "./rope.ts";

/** What a training call of `GroupedQueryAttention` may say. */
export interface GroupedQueryAttentionVjpOptions {
  /**
   * Where the tokens stand, for the rotation: see {@link Positions}. Default 0. The mask goes by the order of
   * tokens.
   */
  readonly positions?: Positions | undefined;
  /** Broadcasts to [B, Hq, S, S]: bool (true may attend) or float (added). */
  readonly attnMask?: Tensor | undefined;
  /** int32 [B]: tokens in use of each sequence, from the first on; later ones are not seen. Default S. */
  readonly kvLengths?: Tensor<"int32"> | undefined;
}
/** What an inference call of `GroupedQueryAttention` may say. */
export interface GroupedQueryAttentionCall extends GroupedQueryAttentionVjpOptions {
  /**
   * The step of a paged cache that x's tokens are: it gives positions and lengths, takes the new keys and
   * values, and the tokens see all that it holds. Excludes the other options.
   */
  readonly cache?: BlockTableReader | undefined;
}
/** Query i is token i whatever `kvLengths` says, so positions of the mask start at 0. */
export function maskOptions({ attnMask, kvLengths }: GroupedQueryAttentionVjpOptions): {
  attnMask: Tensor | undefined;
  kvLengths: Tensor<"int32"> | undefined;
  queryOffset: number;
} {
  return { attnMask, kvLengths, queryOffset: 0 };
}
/**
 * Throws ShapeError unless x is [B, S, hidden], or [T, hidden] beside a cache, and as long as the cache's
 * step.
 */
export function checkInput(x: Tensor, hiddenSize: number, cache: BlockTableReader | undefined): void {
  const rankFits = x.rank === 3 || (x.rank === 2 && cache !== undefined);
  if (!rankFits || x.shape.at(-1) !== hiddenSize) {
    const ragged = cache === undefined ? "" : ` or [T, ${hiddenSize}]`;
    throw new ShapeError(`[GroupedQueryAttention] x must be [B, S, ${hiddenSize}]${ragged}; got ${show(x)}`, {
      x: x.shape,
      hiddenSize,
    });
  }
  const tokens = cache?.positions.size;
  if (tokens !== undefined && x.size !== tokens * hiddenSize) {
    throw new ShapeError(
      `[GroupedQueryAttention] x must hold the ${tokens} tokens of the cache's step; got ${show(x)}`,
      {
        x: x.shape,
        tokens,
      },
    );
  }
}
