import type { Tensor } from "../../core/tensor.ts";
import type { Pages } from "../quantised/pages.ts";
import type { PagedView } from "./plan.ts";

/** Where the new rows of one layer go: the last operands of `kvAppend` and `normRopeAppend`. */
export interface AppendTarget {
  readonly kPages: Tensor; // [P, Hkv, pageSize, D]
  readonly vPages: Tensor; // [P, Hkv, pageSize, Dv]
  readonly slots: Tensor<"int32">; // [T]
}
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
  /**
   * As {@link write}, for an operation that makes the rows and puts them into the pages in one go, such as `normRopeAppend`: `append` is
   * called once, with the target, and must fill every slot. False when these pages take finished rows only, as quantised ones do; then nothing was called.
   */
  writeWith?(layer: number, append: (target: AppendTarget) => void): boolean;
  /** The layer's pages, which may be quantised, and the table of this step. */
  view(layer: number): PagedView<Pages>;
}
