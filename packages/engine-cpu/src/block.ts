import { type DType, DTYPES, type Tensor } from "@heed/tensor";
import { TENSOR } from "./structs.ts";

/** heed_dtype. */
const CODE: Readonly<Record<DType, number>> = {
  float64: 0,
  float32: 1,
  float16: 2,
  bfloat16: 3,
  int32: 4,
  int64: 5,
  uint8: 6,
  bool: 7,
};
const { data, shape, strides, dtype, rank } = TENSOR.fields;

/**
 * Stores the fields of one parameter block into native memory, which is used again for every call: write every field of a struct.
 * Offsets are in bytes from the block's start.
 */
export class Block {
  readonly #int32: Int32Array;
  readonly #float64: Float64Array;
  constructor(memory: ArrayBuffer) {
    this.#int32 = new Int32Array(memory);
    this.#float64 = new Float64Array(memory);
  }
  /** Starts a block: its size, and the int32 (an op code, a flag, 0 where reserved) that follows it. */
  begin(bytes: number, second: number): void {
    this.#int32[0] = bytes;
    this.#int32[1] = second;
  }
  int32(at: number, value: number): void {
    this.#int32[at >> 2] = value;
  }
  float64(at: number, value: number): void {
    this.#float64[at >> 3] = value;
  }
  /** A whole number below 2^53 in size, as int64 or as a pointer. */
  int64(at: number, value: number): void {
    this.#int32[at >> 2] = value; // the array keeps the low 32 bits
    this.#int32[(at >> 2) + 1] = (value | 0) === value ? value >> 31 : Math.floor(value / 2 ** 32);
  }
  /** An absent operand. */
  absent(at: number): void {
    this.int64(at + data, 0);
    this.int32(at + rank, 0);
  }
  /** A tensor, or an absent operand. Throws DisposedError when its handle or its memory is gone. */
  tensor(at: number, t: Tensor | undefined): void {
    if (t === undefined) {
      this.absent(at);
      return;
    }
    t.check();
    this.int64(at + data, t.storage.address + t.offset * DTYPES[t.dtype].bytes);
    const n = t.shape.length;
    for (let i = 0; i < n; i++) {
      this.int64(at + shape + 8 * i, t.shape[i]!);
      this.int64(at + strides + 8 * i, t.strides[i]!);
    }
    this.int32(at + dtype, CODE[t.dtype]);
    this.int32(at + rank, n);
  }
}
