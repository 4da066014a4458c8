import {
  allocate,
  contiguousStrides,
  type DType,
  DTYPES,
  type Engine,
  type Shape,
  type Storage,
  Tensor,
} from "@heed/tensor";
import { cpu } from "../../src/index.ts";

export const GIB: number = 2 ** 30;
/** How far apart rows of a spread operand lie: past 2^32 bytes, and no multiple of it. */
export const STRIDE: number = 5 * GIB + 4096;
export const engine: Engine = cpu();

/** 64 GiB that are described and not reserved: no memory until it is touched. */
export const arena: Tensor<"uint8"> = allocate(engine, "uint8", [64 * GIB]) as Tensor as Tensor<"uint8">;
let free = arena.size;
const taken: { readonly from: number; readonly bytes: number }[] = [];

/** A tensor in the arena's memory. */
export function at<D extends DType>(
  byte: number,
  dtype: D,
  shape: Shape,
  strides?: readonly number[],
): Tensor<D> {
  const { storage }: { readonly storage: Storage } = arena;
  storage.retain();
  return new Tensor(
    engine,
    storage,
    dtype,
    shape,
    strides ?? contiguousStrides(shape),
    byte / DTYPES[dtype].bytes,
  );
}
/** Room for `copies` of `bytes`, STRIDE apart; the last one lies at the arena's end, before what was given out. */
function room(bytes: number, copies = 1): number {
  free -= Math.ceil(bytes / 4096) * 4096;
  for (let i = 0; i < copies; i++) taken.push({ from: free - i * STRIDE, bytes });
  return free - (copies - 1) * STRIDE;
}
/** Zeroes what was given out, to give it out again. */
export function rewind(): void {
  for (const { from, bytes } of taken.splice(0)) {
    using t = at(from, "uint8", [bytes]);
    t.data.fill(0);
  }
  free = arena.size;
}
/** The same values in the last GiB, which the host wrote there. */
export function atEnd<T extends Tensor>(values: T): T {
  const to = at(room(values.size * DTYPES[values.dtype].bytes), values.dtype, values.shape);
  (to.data as Uint8Array).set(values.data as Uint8Array);
  return to as Tensor as T;
}
/** The same values with the first axis (of at most 3) spread over the arena. */
export function spread<T extends Tensor>(values: T): T {
  const { dtype, shape } = values;
  const [rows = 1, ...row] = shape;
  const width = DTYPES[dtype].bytes;
  const from = room((values.size / rows) * width, rows);
  const to = at(from, dtype, shape, [STRIDE / width, ...contiguousStrides(row)]);
  for (let i = 0; i < rows; i++) {
    using target = to.select(0, i);
    using source = values.select(0, i);
    (target.data as Uint8Array).set(source.data as Uint8Array);
  }
  return to as Tensor as T;
}
