import { type ReduceOp, sizeOf } from "@heed/tensor";
import { load, type Numbers, store, type View } from "./view.ts";

type Fold<T> = (x: ArrayLike<T>, from: number, to: number) => T;

// Floats add up in float64. So does int32, whose sums stay exact below 2^53 and then wrap at the store.
const FOLD: Readonly<Record<ReduceOp, Fold<number>>> = {
  sum: (x, from, to) => {
    let s = 0;
    for (let i = from; i < to; i++) s += x[i]!;
    return s;
  },
  max: (x, from, to) => {
    let m = -Infinity;
    for (let i = from; i < to; i++) m = Math.max(m, x[i]!);
    return m;
  },
  min: (x, from, to) => {
    let m = Infinity;
    for (let i = from; i < to; i++) m = Math.min(m, x[i]!);
    return m;
  },
};
const foldInt64 =
  (f: (a: bigint, b: bigint) => bigint): Fold<bigint> =>
  (x, from, to) => {
    let s = x[from]!;
    for (let i = from + 1; i < to; i++) s = f(s, x[i]!);
    return s;
  };
const FOLD_INT64: Readonly<Record<ReduceOp, Fold<bigint>>> = {
  sum: foldInt64((a, b) => a + b),
  max: foldInt64((a, b) => (a > b ? a : b)),
  min: foldInt64((a, b) => (a < b ? a : b)),
};
function foldRows<T>(fold: Fold<T>, x: ArrayLike<T>, out: { [i: number]: T }, rows: number): void {
  const n = x.length / rows;
  for (let r = 0; r < rows; r++) out[r] = fold(x, r * n, (r + 1) * n);
}
/** Reduces the axes where out has length 1 and x may be longer. */
export function reduce(op: ReduceOp, x: View, out: View): void {
  const kept = x.shape.map((_, i) => i).filter((i) => out.shape[i] !== 1);
  const gone = x.shape.map((_, i) => i).filter((i) => out.shape[i] === 1);
  const order = [...kept, ...gone]; // reduced axes last, so that what one result needs is one run
  const { dtype, storage, offset } = x;
  const shape = order.map((i) => x.shape[i]!);
  const values = load({ dtype, storage, offset, shape, strides: order.map((i) => x.strides[i]!) });
  const rows = sizeOf(out.shape);
  store(out, (result) => {
    if (values instanceof BigInt64Array) foldRows(FOLD_INT64[op], values, result as BigInt64Array, rows);
    else foldRows(FOLD[op], values, result as Numbers, rows);
  });
}
