import type { Tensor } from "../../core/tensor.ts";
import type { PagedView } from "./plan.ts";

/**
 * One step of a paged cache, as attention layers see it: T new tokens of one or more sequences, for which room has been reserved. Each
 * layer first writes its new keys and values, then reads all of them in place. The cache moves lengths only when the step is committed.
 */
export interface BlockTableReader {
  /** int32 [T]: the position of each new token in its sequence. */
  readonly positions: Tensor<"int32">;
  /**
   * Stores the new rows of one layer: k [T, Hkv, D], v [T, Hkv, Dv]. Without v the values are the first Dv numbers of each key row; a
   * cache takes one form or the other.
   */
  write(layer: number, k: Tensor, v?: Tensor): void;
  /** The layer's pages and the table of this step. */
  view(layer: number): PagedView;
}
