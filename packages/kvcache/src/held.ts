import {
  contiguousStrides,
  DTYPES,
  type DType,
  type Engine,
  type Shape,
  sizeOf,
  Storage,
  Tensor,
} from "@heed/tensor";

/**
 * Memory that a cache owns. A tensor belongs to the scope in which it is made and dies with it; this lives until it is disposed, and
 * `view` makes tensors over it, contiguous, each with a reference of its own.
 */
export class Held<D extends DType> {
  readonly engine: Engine;
  readonly dtype: D;
  readonly #storage: Storage;
  #disposed = false;
  /** Uninitialised memory for `size` elements. Throws OutOfMemoryError. */
  constructor(engine: Engine, dtype: D, size: number) {
    const bytes = size * DTYPES[dtype].bytes;
    this.engine = engine;
    this.dtype = dtype;
    this.#storage = new Storage(engine.alloc(bytes), bytes);
  }
  /** Size in bytes. */
  get byteLength(): number {
    return this.#storage.byteLength;
  }
  /** Number of elements. */
  get size(): number {
    return this.byteLength / DTYPES[this.dtype].bytes;
  }
  /** A tensor of `shape` over the elements from `offset` on, contiguous unless strides say otherwise. Throws DisposedError. */
  view<S extends Shape>(shape: S, offset = 0, strides: number[] = contiguousStrides(shape)): Tensor<D, S> {
    this.#storage.retain();
    return new Tensor(this.engine, this.#storage, this.dtype, shape, strides, offset);
  }
  /** Gives up the memory; tensors over it keep it until they are disposed. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#storage.release();
  }
}

/** {@link Held} memory of one fixed shape, with the tensor over it. */
export class HeldTensor<D extends DType> {
  readonly #held: Held<D>;
  readonly #shape: Shape;
  readonly #strides: number[];
  #tensor: Tensor<D>;
  /** Strides may order the elements otherwise, but without gaps. Throws OutOfMemoryError. */
  constructor(engine: Engine, dtype: D, shape: Shape, strides: number[] = contiguousStrides(shape)) {
    this.#held = new Held(engine, dtype, sizeOf(shape));
    this.#shape = shape;
    this.#strides = strides;
    this.#tensor = this.#held.view(shape, 0, strides);
  }
  /** Number of elements. */
  get size(): number {
    return this.#held.size;
  }
  /** A tensor [size] over the elements from `offset` on, in the order of memory. Throws DisposedError. */
  flat(offset: number, size: number): Tensor<D> {
    return this.#held.view([size], offset) as Tensor as Tensor<D>;
  }
  /** Size in bytes. */
  get byteLength(): number {
    return this.#held.byteLength;
  }
  /** The tensor; made anew when a scope has disposed the last one. Throws DisposedError. */
  get tensor(): Tensor<D> {
    if (this.#tensor.disposed) this.#tensor = this.#held.view(this.#shape, 0, this.#strides);
    return this.#tensor;
  }
  [Symbol.dispose](): void {
    this.#tensor[Symbol.dispose]();
    this.#held[Symbol.dispose]();
  }
}

/** The first `width` columns of another {@link HeldTensor}, in its memory. */
export class HeldColumns<D extends DType> {
  readonly #whole: HeldTensor<D>;
  readonly #width: number;
  #tensor: Tensor<D> | undefined;
  constructor(whole: HeldTensor<D>, width: number) {
    this.#whole = whole;
    this.#width = width;
  }
  /** 0: the memory counts as the other's. */
  get byteLength(): number {
    return 0;
  }
  /** The view; made anew when a scope has disposed the last one. Throws DisposedError. */
  get tensor(): Tensor<D> {
    if (this.#tensor === undefined || this.#tensor.disposed)
      this.#tensor = this.#whole.tensor.slice(-1, 0, this.#width);
    return this.#tensor;
  }
  [Symbol.dispose](): void {
    this.#tensor?.[Symbol.dispose]();
  }
}
