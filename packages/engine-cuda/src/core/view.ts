import { type DType, DTYPES, type Tensor } from "@heed/tensor";
import type { Block } from "@heed/tensor/native";
import type { Axes } from "./axes.ts";

/** What of a tensor a schedule needs. */
export interface View {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}
/** The address of a tensor's first element. Throws DisposedError. */
export function addressOf(t: Tensor): number {
  t.check();
  return t.storage.address + t.offset * DTYPES[t.dtype].bytes;
}
/** The axes of operands that have one shape; the first one's counts. */
export function axesOf(...operands: readonly View[]): Axes {
  return { shape: operands[0]!.shape, strides: operands.map((t) => t.strides) };
}
/** Writes operand `k` of collapsed axes, whose elements are those of a tensor. */
export function writeOperand(block: Block, at: number, t: Tensor, { shape, strides }: Axes, k: number): void {
  block.view(at, addressOf(t), t.dtype, shape, strides[k]!);
}
