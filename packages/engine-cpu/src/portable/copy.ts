import { type DType, isFloat } from "@heed/tensor";
import { load, type Numbers, type Raw, readRaw, store, type View, writeRaw } from "./view.ts";

/** A float as an integer of [low, high]: toward zero, saturating, NaN as 0. */
function saturate(x: number, low: number, high: number): number {
  return Math.trunc(Math.min(Math.max(x, low), high)) || 0;
}
const INT64_MAX = 2n ** 63n - 1n;
function toInt64(x: number): bigint {
  if (x >= 2 ** 63) return INT64_MAX;
  return BigInt(saturate(x, -(2 ** 63), 2 ** 63));
}
/** What a float becomes on its way into each dtype; the array's own conversion does the rest. */
const FROM_FLOAT: Readonly<Record<DType, ((x: number) => number | bigint) | undefined>> = {
  float64: undefined,
  float32: undefined,
  float16: undefined,
  bfloat16: undefined,
  int32: (x) => saturate(x, -(2 ** 31), 2 ** 31 - 1),
  int64: toInt64,
  uint8: (x) => saturate(x, 0, 255),
  bool: (x) => +(x !== 0),
};
/** The same for integers, which wrap where they don't fit, as in C. */
const FROM_INTEGER: Readonly<Record<DType, ((x: number | bigint) => number | bigint) | undefined>> = {
  float64: Number,
  float32: Number,
  float16: Number,
  bfloat16: Number,
  int32: (x) => (typeof x === "bigint" ? Number(BigInt.asIntN(32, x)) : x),
  int64: BigInt,
  uint8: (x) => (typeof x === "bigint" ? Number(BigInt.asUintN(8, x)) : x),
  bool: (x) => (Number(x) === 0 ? 0 : 1),
};
/** out = x, converted to out's dtype: floats round to nearest even, float to integer truncates and saturates, bool is x != 0. */
export function copy(x: View, out: View): void {
  if (x.dtype === out.dtype) {
    writeRaw(readRaw(x) as Raw, out);
    return;
  }
  const values = load(x) as Numbers;
  const convert = (isFloat(x.dtype) ? FROM_FLOAT : FROM_INTEGER)[out.dtype] as
    ((x: number) => number) | undefined;
  store(out, (result) => {
    const to = result as Numbers; // or bigints, in pair with `convert`
    if (convert === undefined) to.set(values);
    else for (let i = 0; i < values.length; i++) to[i] = convert(values[i]!);
  });
}
