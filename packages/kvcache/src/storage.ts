import {
  ArgumentError,
  contiguousStrides,
  copyInto,
  DeviceError,
  DTYPES,
  type Engine,
  type FloatDType,
  type Tensor,
} from "@heed/tensor";
import { HeldColumns, HeldTensor } from "./held.ts";
import { bytesPerPage, type GroupLayout } from "./layout.ts";

/**
 * Tensors of one layer in which a page has a part: axis 0 is the page and, head-major, axis 2 the row. Those in `owned` lie side by
 * side in memory, page by page; `v` may be columns of `k`.
 */
export interface LayerPlanes {
  readonly k: HeldTensor<FloatDType>; // [P, Hkv, pageSize, D]
  readonly v: HeldTensor<FloatDType> | HeldColumns<FloatDType>; // [P, Hkv, pageSize, Dv]
  readonly owned: readonly HeldTensor<FloatDType>[];
}

function plane(engine: Engine, g: GroupLayout, pages: number, width: number): HeldTensor<FloatDType> {
  const shape = [pages, g.numKvHeads, g.pageSize, width];
  const strides =
    g.layout === "head-major"
      ? contiguousStrides(shape)
      : [g.pageSize * g.numKvHeads * width, width, g.numKvHeads * width, 1];
  return new HeldTensor(engine, g.dtype, shape, strides);
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
  readonly #layers: LayerPlanes[] = [];
  /** Memory for pages 0 .. count, or OutOfMemoryError and none. */
  constructor(engine: Engine, layout: GroupLayout, count: number) {
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
    const k = plane(engine, this.layout, this.pages, headDim);
    if (valuesInKeys) {
      this.#layers.push({ k, v: new HeldColumns(k, valueHeadDim), owned: [k] });
      return;
    }
    try {
      const v = plane(engine, this.layout, this.pages, valueHeadDim);
      this.#layers.push({ k, v, owned: [k, v] });
    } catch (error) {
      k[Symbol.dispose]();
      throw error;
    }
  }
  #zero(page: number): void {
    for (const { owned } of this.#layers) {
      for (const held of owned) {
        const size = held.size / this.pages;
        using row = held.flat(page * size, size);
        row.engine.upload(new DTYPES[this.layout.dtype].array(size), row);
      }
    }
  }
  /** Bytes allocated. */
  get byteLength(): number {
    return this.pages * this.pageBytes;
  }
  /** Key pages of the group's i-th layer, [P, Hkv, pageSize, D]. */
  k(layer: number): Tensor<FloatDType> {
    return this.#layers[layer]!.k.tensor;
  }
  /** Value pages of the group's i-th layer, [P, Hkv, pageSize, Dv]. */
  v(layer: number): Tensor<FloatDType> {
    return this.#layers[layer]!.v.tensor;
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
   * The bytes of a page: each layer's keys, then its values; zeros for the rows from `rows` on. A copy. Throws DeviceError where the host
   * cannot read the memory.
   */
  readPage(page: number, rows: number = this.layout.pageSize): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.pageBytes);
    let at = 0;
    for (const part of this.#parts(page)) {
      bytes.set(part, at);
      if (rows < this.layout.pageSize) clearRows(bytes.subarray(at, at + part.length), this.layout, rows);
      at += part.length;
    }
    return bytes;
  }
  /** Stores what {@link readPage} returned. Throws ArgumentError for a wrong number of bytes or the null page, DeviceError. */
  writePage(page: number, bytes: Uint8Array): void {
    if (bytes.length !== this.pageBytes || page < 1) {
      throw new ArgumentError(
        `[kvcache] page ${page} takes ${this.pageBytes} bytes, and page 0 none; got ${bytes.length}`,
        { page, bytes: bytes.length, pageBytes: this.pageBytes },
      );
    }
    let at = 0;
    for (const part of this.#parts(page)) {
      part.set(bytes.subarray(at, at + part.length));
      at += part.length;
    }
  }
  /** A page's memory, one part for each owned tensor of each layer. */
  #parts(page: number): Uint8Array[] {
    if (!Number.isInteger(page) || page < 0 || page >= this.pages) {
      throw new ArgumentError(`[kvcache] there is no page ${page}; pages are 0..${this.pages - 1}`, {
        page,
        pages: this.pages,
      });
    }
    return this.#layers.flatMap(({ owned }) =>
      owned.map(({ tensor, byteLength }) => {
        const bytes = byteLength / this.pages;
        const part = tensor.storage.hostPart(page * bytes, bytes);
        if (part === undefined) {
          throw new DeviceError(
            `[kvcache] the pages of engine "${tensor.engine.name}" are not in host memory; read them by tensor.read()`,
          );
        }
        return new Uint8Array(part.buffer, page * bytes - part.start, bytes);
      }),
    );
  }
  [Symbol.dispose](): void {
    for (const { k, v } of this.#layers) {
      v[Symbol.dispose]();
      k[Symbol.dispose]();
    }
  }
}
