import type { BinaryOp, UnaryOp } from "@heed/tensor";
import { load, type Numbers, store, type Values, type View } from "./view.ts";

type Unary<T, R = T> = (x: T) => R;
type Binary<T, R = T> = (a: T, b: T) => R;

/** C's pow: 1 to any power is 1, and -1 to an infinite one; Math.pow gives NaN there. */
function pow(a: number, b: number): number {
  return a === 1 || (a === -1 && Math.abs(b) === Infinity) ? 1 : a ** b;
}
// The functions on numbers compute in float64; the store rounds once to the result's dtype. Booleans are 0 and 1.
const UNARY: Readonly<Record<UnaryOp, Unary<number>>> = {
  neg: (x) => -x,
  abs: Math.abs,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  square: (x) => x * x,
  reciprocal: (x) => 1 / x,
  tanh: Math.tanh,
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  silu: (x) => x / (1 + Math.exp(-x)),
  isFinite: (x) => +Number.isFinite(x),
  not: (x) => +(x === 0),
};
const BINARY: Readonly<Record<BinaryOp, Binary<number>>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  max: Math.max,
  min: Math.min,
  pow,
  equal: (a, b) => +(a === b),
  less: (a, b) => +(a < b),
  lessEqual: (a, b) => +(a <= b),
  and: (a, b) => a & b,
  or: (a, b) => a | b,
  maskZero: (a, b) => (b === 0 ? 0 : a),
  maskNegInf: (a, b) => (b === 0 ? -Infinity : a),
};
// Products of int32 pass 2^53, where a double would lose the low bits that wrapping keeps.
const UNARY_INT32: Readonly<Partial<Record<UnaryOp, Unary<number>>>> = { square: (x) => Math.imul(x, x) };
const BINARY_INT32: Readonly<Partial<Record<BinaryOp, Binary<number>>>> = { mul: Math.imul };

const UNARY_INT64: Readonly<Partial<Record<UnaryOp, Unary<bigint>>>> = {
  neg: (x) => -x,
  abs: (x) => (x < 0n ? -x : x),
  square: (x) => x * x,
};
const ARITHMETIC_INT64: Readonly<Partial<Record<BinaryOp, Binary<bigint>>>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  max: (a, b) => (a > b ? a : b),
  min: (a, b) => (a < b ? a : b),
};
const COMPARE_INT64: Readonly<Partial<Record<BinaryOp, Binary<bigint, number>>>> = {
  equal: (a, b) => +(a === b),
  less: (a, b) => +(a < b),
  lessEqual: (a, b) => +(a <= b),
};

function map1<T, R>(f: Unary<T, R>, x: ArrayLike<T>, out: { [i: number]: R }): void {
  for (let i = 0; i < x.length; i++) out[i] = f(x[i]!);
}
function map2<T, R>(f: Binary<T, R>, a: ArrayLike<T>, b: ArrayLike<T>, out: { [i: number]: R }): void {
  for (let i = 0; i < a.length; i++) out[i] = f(a[i]!, b[i]!);
}
/** out = op(x), elementwise; x and out share a shape. */
export function unary(op: UnaryOp, x: View, out: View): void {
  const values = load(x);
  store(out, (result) => {
    if (values instanceof BigInt64Array) map1(UNARY_INT64[op]!, values, result as BigInt64Array);
    else map1((x.dtype === "int32" ? UNARY_INT32[op] : undefined) ?? UNARY[op], values, result as Numbers);
  });
}
function binaryInt64(op: BinaryOp, a: BigInt64Array, b: BigInt64Array, out: Values): void {
  const compare = COMPARE_INT64[op];
  if (compare !== undefined) map2(compare, a, b, out as Numbers);
  else map2(ARITHMETIC_INT64[op]!, a, b, out as BigInt64Array);
}
/** out = op(a, b), elementwise; a and b have out's shape, broadcast axes with stride 0. */
export function binary(op: BinaryOp, a: View, b: View, out: View): void {
  const x = load(a);
  const y = load(b);
  store(out, (result) => {
    if (x instanceof BigInt64Array) binaryInt64(op, x, y as BigInt64Array, result);
    else
      map2(
        (a.dtype === "int32" ? BINARY_INT32[op] : undefined) ?? BINARY[op],
        x,
        y as Numbers,
        result as Numbers,
      );
  });
}
