import { type DType, DTYPES } from "../core/dtype.ts";
import type { Tensor } from "../core/tensor.ts";
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
 * Offsets are in bytes from the block's start. Addresses are those of the tensors' engine, so a block is for that engine's device.
 */
export class Block {
  readonly #int32: Int32Array;
  readonly #float64: Float64Array;
  /** A block that begins `from` bytes into the memory, a multiple of 8. */
  constructor(memory: ArrayBuffer, from = 0) {
    this.#int32 = new Int32Array(memory, from);
    this.#float64 = new Float64Array(memory, from);
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
    this.view(at, t.storage.address + t.offset * DTYPES[t.dtype].bytes, t.dtype, t.shape, t.strides);
  }
  /** A strided view of memory at an address; strides count elements. */
  view(at: number, address: number, of: DType, lengths: readonly number[], steps: readonly number[]): void {
    this.int64(at + data, address);
    const n = lengths.length;
    for (let i = 0; i < n; i++) {
      this.int64(at + shape + 8 * i, lengths[i]!);
      this.int64(at + strides + 8 * i, steps[i]!);
    }
    this.int32(at + dtype, CODE[of]);
    this.int32(at + rank, n);
  }
}
