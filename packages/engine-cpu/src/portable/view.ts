import {
  type DType,
  DTYPES,
  type DTypeArrays,
  isContiguous,
  type Shape,
  sizeOf,
  toBFloat16,
} from "@heed/tensor";

/** The part of a tensor that says where its elements are; a Tensor is one. */
export interface View {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly strides: readonly number[];
  readonly offset: number;
  readonly storage: { readonly buffer: ArrayBuffer | undefined };
}
/** Elements as numbers that arithmetic works on; bfloat16 is widened to float32. int64 is the only dtype of bigints. */
export type Values = Float64Array | Float32Array | Float16Array | Int32Array | BigInt64Array | Uint8Array;
/** {@link Values} of every dtype but int64. */
export type Numbers = Exclude<Values, BigInt64Array>;
/** Elements as memory holds them. */
export type Raw = DTypeArrays[DType];

/** The whole storage under a view, as its dtype's array. */
export function memoryOf(x: View): Raw {
  const buffer = x.storage.buffer!;
  const { array, bytes } = DTYPES[x.dtype];
  return new array(buffer, 0, Math.floor(buffer.byteLength / bytes)) as Raw;
}
/** Distance of every index of `shape` from element [0, ..., 0], in row-major order. Arrays of whole numbers are fast to index with. */
export function offsetsOf(shape: Shape, strides: readonly number[]): number[] {
  let out = [0];
  for (let axis = 0; axis < shape.length; axis++) {
    const length = shape[axis]!;
    const stride = strides[axis]!;
    if (length === 1) continue;
    const next = new Array<number>(out.length * length);
    let at = 0;
    for (const base of out) for (let i = 0; i < length; i++) next[at++] = base + i * stride;
    out = next;
  }
  return out;
}
/** The same view as rows along its last axis that is longer than 1: where rows start, how long they are, the step inside one. */
function rowsOf(x: View): { readonly starts: number[]; readonly length: number; readonly step: number } {
  const last = x.shape.findLastIndex((n) => n !== 1);
  if (last < 0) return { starts: [0], length: 1, step: 1 };
  return {
    starts: offsetsOf(x.shape.slice(0, last), x.strides),
    length: x.shape[last]!,
    step: x.strides[last]!,
  };
}
/** The elements of a view, row-major and unconverted; the memory itself when it lies so. */
export function readRaw(x: View): Raw {
  const memory = memoryOf(x) as Float32Array<ArrayBuffer>; // any of them: the loop below only moves elements
  const size = sizeOf(x.shape);
  if (isContiguous(x.shape, x.strides)) return memory.subarray(x.offset, x.offset + size);
  const out = new DTYPES[x.dtype].array(size) as Float32Array<ArrayBuffer>;
  const { starts, length, step } = rowsOf(x);
  let to = 0;
  for (const start of starts) {
    let from = x.offset + start;
    for (let i = 0; i < length; i++, from += step) out[to++] = memory[from]!;
  }
  return out;
}
/** Writes row-major elements, unconverted, to a view. */
export function writeRaw(values: Raw, out: View): void {
  const memory = memoryOf(out) as Float32Array<ArrayBuffer>;
  const source = values as Float32Array<ArrayBuffer>;
  if (isContiguous(out.shape, out.strides)) {
    memory.set(source, out.offset);
    return;
  }
  const { starts, length, step } = rowsOf(out);
  let from = 0;
  for (const start of starts) {
    let to = out.offset + start;
    for (let i = 0; i < length; i++, to += step) memory[to] = source[from++]!;
  }
}
function widen(bits: Uint16Array): Float32Array {
  const wide = new Uint32Array(bits.length);
  for (let i = 0; i < wide.length; i++) wide[i] = bits[i]! << 16;
  return new Float32Array(wide.buffer);
}
function narrow(values: Float64Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) bits[i] = toBFloat16(values[i]!);
  return bits;
}
/** The elements of a view as {@link Values}, row-major. They may be the memory itself: read them, don't write. */
export function load(x: View): Values {
  const raw = readRaw(x);
  return x.dtype === "bfloat16" ? widen(raw as Uint16Array) : (raw as Values);
}
/**
 * Lets `fill` write a view's elements, row-major; what it writes is rounded once, to the view's dtype. Element i may be written
 * before element i + 1 of an operand at the same place is read, no earlier.
 */
export function store(out: View, fill: (values: Values) => void): void {
  const size = sizeOf(out.shape);
  if (out.dtype === "bfloat16") {
    const values = new Float64Array(size); // not float32: that would be a rounding more
    fill(values);
    writeRaw(narrow(values), out);
  } else if (isContiguous(out.shape, out.strides)) {
    fill(readRaw(out) as Values);
  } else {
    const values = new DTYPES[out.dtype].array(size) as Values;
    fill(values);
    writeRaw(values as Raw, out);
  }
}
