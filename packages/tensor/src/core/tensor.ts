import type { Engine } from "../engine/engine.ts";
import { DTYPES, type DType, type DTypeArrays } from "./dtype.ts";
import { DeviceError, DisposedError, DTypeError, ShapeError } from "./errors.ts";
import {
  broadcastStrides,
  checkShape,
  contiguousStrides,
  isContiguous,
  normalizeAxis,
  reshapeStrides,
  resolveShape,
  type Shape,
  sizeOf,
} from "./shape.ts";
import { adopt } from "./scope.ts";
import { checkHostBytes, Storage } from "./storage.ts";
import { noteRead } from "./watch.ts";

/**
 * A strided view of memory that an engine owns. Views (slice, transpose, reshape, broadcast) share memory and copy nothing; each
 * handle is disposed on its own and the last one frees the memory. `using t = ...` or {@link scope} dispose for you.
 */
export class Tensor<D extends DType = DType, S extends Shape = Shape> {
  readonly engine: Engine;
  readonly dtype: D;
  readonly shape: S;
  /** Steps between neighbours along each axis, in elements; 0 on a broadcast axis. */
  readonly strides: readonly number[];
  /** Position of element [0, ..., 0] in the storage, in elements. */
  readonly offset: number;
  readonly storage: Storage;
  #disposed = false;

  /** For engines and operations; users call {@link tensor}, {@link zeros} and the like. Takes over one reference of `storage`. */
  constructor(
    engine: Engine,
    storage: Storage,
    dtype: D,
    shape: S,
    strides: readonly number[],
    offset: number,
  ) {
    this.engine = engine;
    this.storage = storage;
    this.dtype = dtype;
    this.shape = shape;
    this.strides = strides;
    this.offset = offset;
    adopt(this);
  }
  /** Number of axes. */
  get rank(): number {
    return this.shape.length;
  }
  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }
  /** Whether this handle was disposed. */
  get disposed(): boolean {
    return this.#disposed;
  }
  /** Whether the elements lie row-major without gaps. */
  get isContiguous(): boolean {
    return isContiguous(this.shape, this.strides);
  }
  /** Throws DisposedError when this handle was disposed or its memory detached. */
  check(): void {
    if (this.#disposed) {
      throw new DisposedError(
        `[tensor] ${show(this)} was disposed; keep it alive until its last use, or return it from the scope`,
        {
          shape: this.shape,
          dtype: this.dtype,
        },
      );
    }
    this.storage.check();
  }
  /**
   * The elements as a live typed array over the tensor's own memory; it is detached when the memory is freed.
   * Throws DeviceError off the host, ShapeError unless contiguous and of at most 4 GiB, DisposedError.
   */
  get data(): DTypeArrays[D] {
    this.check();
    const { array, bytes } = DTYPES[this.dtype];
    const at = this.offset * bytes;
    const part = this.storage.hostPart(at, this.size * bytes);
    if (part === undefined) {
      throw new DeviceError(
        `[tensor.data] the memory of engine "${this.engine.name}" is not on the host; use await tensor.read()`,
      );
    }
    if (!this.isContiguous) {
      throw new ShapeError(
        `[tensor.data] ${show(this)} with strides [${this.strides.join(", ")}] is not contiguous; call contiguous()`,
        {
          shape: this.shape,
          strides: this.strides,
        },
      );
    }
    noteRead(this);
    return new array(part.buffer, at - part.start, this.size) as DTypeArrays[D];
  }
  /**
   * A copy of the elements, row-major, once the work before it is done. Throws DisposedError, ShapeError past 4 GiB; rejects when
   * `signal` aborts.
   */
  async read(options: { readonly signal?: AbortSignal } = {}): Promise<DTypeArrays[D]> {
    this.check();
    options.signal?.throwIfAborted();
    checkHostBytes(this.size * DTYPES[this.dtype].bytes);
    return (await this.engine.read(this, options.signal)) as DTypeArrays[D];
  }
  /** Another view of the same memory. */
  #view<S2 extends Shape>(shape: S2, strides: readonly number[], offset: number): Tensor<D, S2> {
    this.check();
    this.storage.retain();
    return new Tensor(this.engine, this.storage, this.dtype, shape, strides, offset);
  }
  /** A second handle on the same elements, disposed on its own. */
  alias(): Tensor<D, S> {
    return this.#view(this.shape, this.strides, this.offset);
  }
  /** Elements start .. end - 1 of one axis (end defaults to its length; negative counts from the end). Throws ShapeError. */
  slice(axis: number, start: number, end?: number): Tensor<D> {
    const a = normalizeAxis(axis, this.rank, "slice");
    const n = this.shape[a]!;
    const from = start < 0 ? start + n : start;
    const to = end === undefined ? n : end < 0 ? end + n : end;
    if (!Number.isInteger(from) || !Number.isInteger(to) || from < 0 || to > n || from > to) {
      throw new ShapeError(`[slice] range ${start}..${end ?? n} is not within axis ${a} of ${show(this)}`, {
        axis: a,
        start,
        end,
      });
    }
    const shape = this.shape.slice();
    shape[a] = to - from;
    return this.#view(shape, this.strides, this.offset + from * this.strides[a]!);
  }
  /** The sub-tensor at one index of an axis, which disappears. Negative counts from the end. Throws ShapeError. */
  select(axis: number, index: number): Tensor<D> {
    const a = normalizeAxis(axis, this.rank, "select");
    const n = this.shape[a]!;
    const i = index < 0 ? index + n : index;
    if (!Number.isInteger(i) || i < 0 || i >= n) {
      throw new ShapeError(`[select] index ${index} is not within axis ${a} of ${show(this)}`, {
        axis: a,
        index,
      });
    }
    return this.#view(
      this.shape.toSpliced(a, 1),
      this.strides.toSpliced(a, 1),
      this.offset + i * this.strides[a]!,
    );
  }
  /** The axes in another order. Throws ShapeError unless `axes` is a permutation. */
  permute(...axes: number[]): Tensor<D> {
    const order = axes.map((a) => normalizeAxis(a, this.rank, "permute"));
    if (order.length !== this.rank || new Set(order).size !== this.rank) {
      throw new ShapeError(
        `[permute] axes must name each axis of ${show(this)} once; got [${axes.join(", ")}]`,
        { axes },
      );
    }
    return this.#view(
      order.map((a) => this.shape[a]!),
      order.map((a) => this.strides[a]!),
      this.offset,
    );
  }
  /** Two axes exchanged; the last two by default. Throws ShapeError. */
  transpose(a = -2, b = -1): Tensor<D> {
    const x = normalizeAxis(a, this.rank, "transpose");
    const y = normalizeAxis(b, this.rank, "transpose");
    const order = this.shape.map((_, i) => (i === x ? y : i === y ? x : i));
    return this.permute(...order);
  }
  /**
   * The same elements under another shape; one length may be -1. Never copies: throws ShapeError where the strides do not allow a
   * view (call contiguous() first) or the sizes differ.
   */
  reshape(shape: Shape): Tensor<D> {
    const target = resolveShape(shape, this.size, "reshape");
    checkShape(target, "reshape");
    const strides = reshapeStrides(this.shape, this.strides, target);
    if (strides === undefined) {
      throw new ShapeError(
        `[reshape] ${show(this)} with strides [${this.strides.join(", ")}] cannot be viewed as [${target.join(", ")}]; call contiguous() first`,
        { shape: this.shape, strides: this.strides, target },
      );
    }
    return this.#view(target, strides, this.offset);
  }
  /** The same elements read as a larger shape (NumPy rules, stride 0 on new axes). Throws ShapeError. */
  broadcastTo(shape: Shape): Tensor<D> {
    checkShape(shape, "broadcastTo");
    return this.#view(
      shape.slice(),
      broadcastStrides(this.shape, this.strides, shape, "broadcastTo"),
      this.offset,
    );
  }
  /** An axis of length 1 inserted before `axis` (0 .. rank, or negative from the end). */
  unsqueeze(axis: number): Tensor<D> {
    const a = normalizeAxis(axis, this.rank + 1, "unsqueeze");
    const shape = this.shape.toSpliced(a, 0, 1);
    checkShape(shape, "unsqueeze");
    return this.#view(shape, this.strides.toSpliced(a, 0, 0), this.offset);
  }
  /** An axis of length 1 removed. Throws ShapeError when it is longer. */
  squeeze(axis: number): Tensor<D> {
    const a = normalizeAxis(axis, this.rank, "squeeze");
    if (this.shape[a] !== 1)
      throw new ShapeError(`[squeeze] axis ${a} of ${show(this)} is not of length 1`, { axis: a });
    return this.select(a, 0);
  }
  /** This tensor (a second handle) when contiguous, else a row-major copy. */
  contiguous(): Tensor<D, S> {
    if (this.isContiguous) return this.alias();
    this.check();
    return computed(allocate(this.engine, this.dtype, this.shape), (out) => {
      if (out.size > 0) this.engine.copy(this, out);
    });
  }
  /** Frees this handle; the last handle on the memory frees the memory at once. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.storage.release();
  }
  /** `float32[2, 3]`; never reads elements. */
  toString(): string {
    return show(this);
  }
}
/** A new tensor after `compute` has written it; frees it when that throws, since nobody else has a handle then. */
export function computed<T extends Tensor>(out: T, compute: (out: T) => void): T {
  try {
    compute(out);
  } catch (error) {
    out[Symbol.dispose]();
    throw error;
  }
  return out;
}
/** `float32[2, 3]`, as error texts name tensors. */
export function show(t: { readonly dtype: DType; readonly shape: Shape }): string {
  return `${t.dtype}[${t.shape.join(", ")}]`;
}
/** Throws DTypeError unless `dtype` is one of {@link DType}. */
export function checkDType(dtype: DType): void {
  if (Object.hasOwn(DTYPES, dtype)) return;
  throw new DTypeError(
    `[tensor] there is no dtype ${String(dtype)}; known: ${Object.keys(DTYPES).join(", ")}`,
    { dtype },
  );
}
/** An uninitialised contiguous tensor. Throws DTypeError, ShapeError, OutOfMemoryError. */
export function allocate<D extends DType, S extends Shape>(engine: Engine, dtype: D, shape: S): Tensor<D, S> {
  checkDType(dtype);
  checkShape(shape, "allocate");
  const bytes = sizeOf(shape) * DTYPES[dtype].bytes;
  const storage = new Storage(engine.alloc(bytes), bytes);
  return new Tensor(engine, storage, dtype, shape, contiguousStrides(shape), 0);
}
