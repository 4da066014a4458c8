/** The floating-point types the library stores. */
export type FloatDType = "float64" | "float32" | "float16" | "bfloat16";

/** All {@link FloatDType}s, widest first. */
export const floatDTypes: readonly FloatDType[] = ["float64", "float32", "float16", "bfloat16"];

const float32Scratch = new Float32Array(1);
const bitsScratch = new Uint32Array(float32Scratch.buffer);

/**
 * The bfloat16 bits nearest to `x`, ties to even, in one rounding: a float64 that float32 would first move onto a
 * tie is decided by its own side of the tie. NaN becomes the quiet NaN 0x7fc0; overflow becomes an infinity.
 */
export function encodeBfloat16(x: number): number {
  if (Number.isNaN(x)) return 0x7fc0;
  float32Scratch[0] = x;
  const bits = bitsScratch[0]!;
  const rounded = float32Scratch[0]!;
  const high = bits >>> 16;
  const low = bits & 0xffff;
  if (low !== 0x8000) return low > 0x8000 ? high + 1 : high;
  if (rounded === x) return high + (high & 1);
  return Math.abs(x) > Math.abs(rounded) ? high + 1 : high;
}

/** The value of 16 bfloat16 bits. */
export function decodeBfloat16(bits: number): number {
  bitsScratch[0] = (bits & 0xffff) << 16;
  return float32Scratch[0]!;
}

/** `x` rounded to the nearest value of `dtype`, ties to even, as a number. */
export function roundTo(dtype: FloatDType, x: number): number {
  switch (dtype) {
    case "float64":
      return x;
    case "float32":
      return Math.fround(x);
    case "float16":
      return Math.f16round(x);
    case "bfloat16":
      return decodeBfloat16(encodeBfloat16(x));
  }
}

/** The elements of `x`, each rounded to `dtype`, as float64. */
export function roundArray(dtype: FloatDType, x: ArrayLike<number>): Float64Array {
  return Float64Array.from(x, (value) => roundTo(dtype, value));
}

/** The typed array that stores each dtype; bfloat16 is stored as its bits. */
export interface FloatStorage {
  readonly float64: Float64Array<ArrayBuffer>;
  readonly float32: Float32Array<ArrayBuffer>;
  readonly float16: Float16Array<ArrayBuffer>;
  readonly bfloat16: Uint16Array<ArrayBuffer>;
}

/** The elements of `x`, rounded to `dtype`, in the array that stores it. */
export function encodeArray<T extends FloatDType>(dtype: T, x: ArrayLike<number>): FloatStorage[T] {
  const encode: { readonly [K in FloatDType]: () => FloatStorage[K] } = {
    float64: () => Float64Array.from(x),
    float32: () => Float32Array.from(x),
    float16: () => Float16Array.from(x),
    bfloat16: () => Uint16Array.from(x, encodeBfloat16),
  };
  return encode[dtype]();
}

/** The float64 values of an array that {@link encodeArray} made. */
export function decodeArray(dtype: FloatDType, stored: ArrayLike<number>): Float64Array {
  return dtype === "bfloat16" ? Float64Array.from(stored, decodeBfloat16) : Float64Array.from(stored);
}
