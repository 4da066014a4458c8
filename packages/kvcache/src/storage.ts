import {
  ArgumentError,
  contiguousStrides,
  copyInto,
  DeviceError,
  type DType,
  DTYPES,
  type Engine,
  type FloatDType,
  type Pages,
  type Shape,
  type Tensor,
} from "@heed/tensor";
import { HeldColumns, HeldTensor } from "./held.ts";
import { bytesPerPage, type GroupLayout, isQuantised } from "./layout.ts";

/** Keys or values of one layer: floats [P, Hkv, pageSize, width], or codes with the scale [P, Hkv, pageSize] of each row. */
interface Plane {
  readonly numbers: HeldTensor<FloatDType | "uint8"> | HeldColumns<FloatDType | "uint8">;
  readonly scales: HeldTensor<"float32"> | undefined;
}
/**
 * Memory of one layer. `owned` are tensors in which a page has a part: axis 0 is the page and, head-major, axis 2 the row, and they lie
 * side by side in memory, page by page. `v` may be columns of `k`.
 */
interface LayerPlanes {
  readonly k: Plane;
  readonly v: Plane;
  readonly owned: readonly HeldTensor<DType>[];
}

/** Strides of [pages, Hkv, pageSize, ...rest] in the group's order of memory. */
function stridesOf({ numKvHeads, pageSize, layout }: GroupLayout, shape: Shape, width: number): number[] {
  if (layout === "head-major") return contiguousStrides(shape);
  return [pageSize * numKvHeads * width, width, numKvHeads * width, 1].slice(0, shape.length);
}
/** Memory for the keys or values of one layer, with what of it is to be freed. */
function allocatePlane(
  engine: Engine,
  g: GroupLayout,
  pages: number,
  width: number,
  owned: HeldTensor<DType>[],
): Plane {
  const hold = <D extends DType>(dtype: D, row: readonly number[]): HeldTensor<D> => {
    const shape = [pages, g.numKvHeads, g.pageSize, ...row];
    const held = new HeldTensor(engine, dtype, shape, stridesOf(g, shape, row[0] ?? 1));
    owned.push(held as unknown as HeldTensor<DType>);
    return held;
  };
  if (!isQuantised(g.dtype)) return { numbers: hold(g.dtype, [width]), scales: undefined };
  return { numbers: hold("uint8", [width]), scales: hold("float32", []) };
}

/** Zeros for the rows from `from` on in one plane's part of a page. */
function clearRows(part: Uint8Array, { numKvHeads, pageSize, layout }: GroupLayout, from: number): void {
  const runs = layout === "head-major" ? numKvHeads : 1; // stretches of pageSize rows that lie together
  const size = part.length / runs;
  for (let run = 0; run < runs; run++) part.fill(0, run * size + (size / pageSize) * from, (run + 1) * size);
}
/**
 * The memory of one group's pages: keys and values of each of its layers. A page number means the same tokens in all of them. Page 0
 * holds zeros. Nothing else touches these tensors but the operations that a step hands them to.
 */
export class PageStorage {
  readonly layout: GroupLayout;
  /** Pages, the null page included. */
  readonly pages: number;
  /** Bytes of one page over all layers. */
  readonly pageBytes: number;
  readonly #engine: Engine;
  readonly #layers: LayerPlanes[] = [];
  /** Memory for pages 0 .. count, or OutOfMemoryError and none. */
  constructor(engine: Engine, layout: GroupLayout, count: number) {
    this.#engine = engine;
    this.layout = layout;
    this.pages = count + 1;
    this.pageBytes = bytesPerPage(layout);
    try {
      for (let i = 0; i < layout.layers.length; i++) this.#allocate(engine);
      this.#zero(0);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }
  #allocate(engine: Engine): void {
    const { headDim, valueHeadDim, valuesInKeys } = this.layout;
    const owned: HeldTensor<DType>[] = [];
    try {
      const k = allocatePlane(engine, this.layout, this.pages, headDim, owned);
      const v = valuesInKeys
        ? { ...k, numbers: new HeldColumns(k.numbers as HeldTensor<FloatDType | "uint8">, valueHeadDim) }
        : allocatePlane(engine, this.layout, this.pages, valueHeadDim, owned);
      this.#layers.push({ k, v, owned });
    } catch (error) {
      for (const held of owned) held[Symbol.dispose]();
      throw error;
    }
  }
  #zero(page: number): void {
    for (const { owned } of this.#layers) {
      for (const held of owned) {
        const size = held.size / this.pages;
        using row = held.flat(page * size, size);
        row.engine.upload(new DTYPES[row.dtype].array(size), row);
      }
    }
  }
  /** Bytes allocated. */
  get byteLength(): number {
    return this.pages * this.pageBytes;
  }
  /** Key pages of the group's i-th layer, [P, Hkv, pageSize, D]. */
  k(layer: number): Pages {
    return this.#pagesOf(this.#layers[layer]!.k);
  }
  /** Value pages of the group's i-th layer, [P, Hkv, pageSize, Dv]. */
  v(layer: number): Pages {
    return this.#pagesOf(this.#layers[layer]!.v);
  }
  #pagesOf({ numbers, scales }: Plane): Pages {
    const { dtype } = this.layout;
    if (scales === undefined || !isQuantised(dtype)) return numbers.tensor;
    return { format: dtype, codes: numbers.tensor as Tensor as Tensor<"uint8">, scales: scales.tensor };
  }
  /** Copies rows 0 .. rows - 1 of one page to another, in every layer. Throws what the engine's copy throws. */
  copyRows(from: number, to: number, rows: number): void {
    for (const { owned } of this.#layers) {
      for (const { tensor } of owned) {
        using source = tensor.select(0, from); // [Hkv, pageSize, w]
        using target = tensor.select(0, to);
        using used = source.slice(1, 0, rows);
        using place = target.slice(1, 0, rows);
        copyInto(used, place);
      }
    }
  }
  /**
   * The bytes of a page: each layer's keys, then its values, codes before their scales; zeros for the rows from `rows` on. A copy. Throws DeviceError where the host
   * cannot read the memory.
   */
  readPage(page: number, rows: number = this.layout.pageSize): Uint8Array<ArrayBuffer> {
    return this.#join(this.#parts(page), rows);
  }
  #join(parts: readonly Uint8Array[], rows: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.pageBytes);
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      if (rows < this.layout.pageSize) clearRows(bytes.subarray(at, at + part.length), this.layout, rows);
      at += part.length;
    }
    return bytes;
  }
  /** {@link readPage}, or on a device a promise of it: the page as the calls before this one leave it, whatever follows. */
  fetchPage(
    page: number,
    rows: number = this.layout.pageSize,
  ): Uint8Array<ArrayBuffer> | Promise<Uint8Array<ArrayBuffer>> {
    return this.#engine.device === "cpu" ? this.readPage(page, rows) : this.#download(page, rows);
  }
  async #download(page: number, rows: number): Promise<Uint8Array<ArrayBuffer>> {
    const parts = this.#flats(page);
    try {
      const arrays = await Promise.all(parts.map((part) => part.read()));
      return this.#join(
        arrays.map(({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength)),
        rows,
      );
    } finally {
      for (const part of parts) part[Symbol.dispose]();
    }
  }
  /** Stores what {@link readPage} returned. Throws ArgumentError for a wrong number of bytes or the null page. */
  writePage(page: number, bytes: Uint8Array): void {
    if (bytes.length !== this.pageBytes || page < 1) {
      throw new ArgumentError(
        `[kvcache] page ${page} takes ${this.pageBytes} bytes, and page 0 none; got ${bytes.length}`,
        { page, bytes: bytes.length, pageBytes: this.pageBytes },
      );
    }
    let at = 0;
    if (this.#engine.device === "cpu") {
      for (const part of this.#parts(page)) {
        part.set(bytes.subarray(at, at + part.length));
        at += part.length;
      }
      return;
    }
    for (const part of this.#flats(page)) {
      using target = part;
      const { array, bytes: width } = DTYPES[target.dtype];
      const own = bytes.slice(at, at + target.size * width);
      target.engine.upload(new array(own.buffer, 0, target.size), target);
      at += own.length;
    }
  }
  #requirePage(page: number): void {
    if (Number.isInteger(page) && page >= 0 && page < this.pages) return;
    throw new ArgumentError(`[kvcache] there is no page ${page}; pages are 0..${this.pages - 1}`, {
      page,
      pages: this.pages,
    });
  }
  /** Tensors over a page's memory, one for each owned tensor of each layer; the caller disposes them. */
  #flats(page: number): Tensor[] {
    this.#requirePage(page);
    return this.#layers.flatMap(({ owned }) =>
      owned.map((held) => held.flat((held.size / this.pages) * page, held.size / this.pages)),
    );
  }
  /** A page's memory, one part for each owned tensor of each layer. */
  #parts(page: number): Uint8Array[] {
    this.#requirePage(page);
    return this.#layers.flatMap(({ owned }) =>
      owned.map(({ tensor, byteLength }) => {
        const bytes = byteLength / this.pages;
        const part = tensor.storage.hostPart(page * bytes, bytes);
        if (part === undefined) {
          throw new DeviceError(
            `[kvcache] the pages of engine "${tensor.engine.name}" are not in host memory; fetch them`,
          );
        }
        return new Uint8Array(part.buffer, page * bytes - part.start, bytes);
      }),
    );
  }
  [Symbol.dispose](): void {
    for (const { v, owned } of this.#layers) {
      v.numbers[Symbol.dispose]();
      for (const held of owned) held[Symbol.dispose]();
    }
  }
}
