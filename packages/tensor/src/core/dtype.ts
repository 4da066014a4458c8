/** The typed array in which a host keeps each dtype. bfloat16 is stored as its 16 bits, bool as 0 and 1. */
export interface DTypeArrays {
  float64: Float64Array<ArrayBuffer>;
  float32: Float32Array<ArrayBuffer>;
  float16: Float16Array<ArrayBuffer>;
  bfloat16: Uint16Array<ArrayBuffer>;
  int32: Int32Array<ArrayBuffer>;
  int64: BigInt64Array<ArrayBuffer>;
  uint8: Uint8Array<ArrayBuffer>;
  bool: Uint8Array<ArrayBuffer>;
}
/** Element types of a tensor. */
export type DType = keyof DTypeArrays;
/** Element types that arithmetic with rounding is defined for. */
export type FloatDType = "float64" | "float32" | "float16" | "bfloat16";

interface DTypeInfo<D extends DType> {
  readonly bytes: number;
  readonly isFloat: boolean;
  readonly array: {
    new (length: number): DTypeArrays[D];
    new (buffer: ArrayBuffer, byteOffset: number, length: number): DTypeArrays[D];
  };
}
/** Size, kind and typed array of every dtype. */
export const DTYPES: { readonly [D in DType]: DTypeInfo<D> } = {
  float64: { bytes: 8, isFloat: true, array: Float64Array },
  float32: { bytes: 4, isFloat: true, array: Float32Array },
  float16: { bytes: 2, isFloat: true, array: Float16Array },
  bfloat16: { bytes: 2, isFloat: true, array: Uint16Array },
  int32: { bytes: 4, isFloat: false, array: Int32Array },
  int64: { bytes: 8, isFloat: false, array: BigInt64Array },
  uint8: { bytes: 1, isFloat: false, array: Uint8Array },
  bool: { bytes: 1, isFloat: false, array: Uint8Array },
};
/** Whether `dtype` is one of {@link FloatDType}. */
export function isFloat(dtype: DType): dtype is FloatDType {
  return DTYPES[dtype].isFloat;
}
/** The dtype in which sums over `dtype` are kept: float32 for the 16-bit floats, else itself. */
export function accumulatorOf(dtype: FloatDType): "float32" | "float64" {
  return dtype === "float64" ? "float64" : "float32";
}

const bits = new Uint32Array(new ArrayBuffer(4));
const floats = new Float32Array(bits.buffer);
/** The value of a bfloat16 given by its 16 bits. */
export function fromBFloat16(x: number): number {
  bits[0] = x << 16;
  return floats[0]!;
}
/** The 16 bits of the bfloat16 nearest to `x`, ties to even, in one rounding; NaN stays NaN. */
export function toBFloat16(x: number): number {
  floats[0] = x;
  const u = bits[0]!;
  if ((u & 0x7fffffff) > 0x7f800000) return (u >>> 16) | 0x40;
  // Rounding to float32 may have moved x onto a tie: then x itself says on which side of it it was.
  const rounded = floats[0]!;
  if ((u & 0xffff) === 0x8000 && rounded !== x)
    return ((u >>> 16) + +(Math.abs(x) > Math.abs(rounded))) & 0xffff;
  return ((u + 0x7fff + ((u >>> 16) & 1)) >>> 16) & 0xffff;
}
