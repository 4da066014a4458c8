import {
  ArgumentError,
  copyInto,
  DeviceError,
  DTYPES,
  type Engine,
  type Pages,
  type Tensor,
} from "@heed/tensor";
import type { GroupLayout } from "./layout.ts";
import { bytesPerPage, bytesPerResidualPage } from "./page-limits.ts";
import { allocatePlane, columnsOf, type HeldPages, type Plane } from "./planes.ts";

/** Memory of one layer; `v` may be columns of `k`. */
interface LayerPlanes {
  readonly k: Plane;
  readonly v: Plane;
}

/** Zeros for the rows from `from` on in one plane's part of a page. */
function clearRows(part: Uint8Array, { numKvHeads, pageSize, layout }: GroupLayout, from: number): void {
  const runs = layout === "head-major" ? numKvHeads : 1; // stretches of pageSize rows that lie together
  const size = part.length / runs;
  for (let run = 0; run < runs; run++) part.fill(0, run * size + (size / pageSize) * from, (run + 1) * size);
}
/**
 * The memory of one group's pages: keys and values of each of its layers. A page number means the same tokens in all of them. Page 0
 * holds zeros. In an "int4" group a number from `pages` on is a residual page, as in tables; it has rows of floats. Nothing else touches
 * these tensors but the operations that a step hands them to.
 */
export class PageStorage {
  readonly engine: Engine;
  readonly layout: GroupLayout;
  /** Pages, the null page included; residual pages not. */
  readonly pages: number;
  readonly residualPages: number;
  /** Bytes of one page over all layers. */
  readonly pageBytes: number;
  /** Bytes of one residual page over all layers. */
  readonly residualPageBytes: number;
  readonly #layers: LayerPlanes[] = [];
  /** Memory for pages 0 .. count and so many residual pages, or OutOfMemoryError and none. */
  constructor(engine: Engine, layout: GroupLayout, count: number, residualPages = 0) {
    this.engine = engine;
    this.layout = layout;
    this.pages = count + 1;
    this.residualPages = residualPages;
    this.pageBytes = bytesPerPage(layout);
    this.residualPageBytes = bytesPerResidualPage(layout);
    try {
      for (let i = 0; i < layout.layers.length; i++) this.#allocate(engine);
      this.#zero(0);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }
  #allocate(engine: Engine): void {
    const { layout, pages, residualPages } = this;
    const { headDim, valueHeadDim, valuesInKeys } = layout;
    const sizes = { pages, residualPages };
    const k = allocatePlane(engine, layout, { ...sizes, width: headDim }, "keys");
    try {
      const v = valuesInKeys
        ? columnsOf(k, valueHeadDim)
        : allocatePlane(engine, layout, { ...sizes, width: valueHeadDim }, "values");
      this.#layers.push({ k, v });
    } catch (error) {
      k[Symbol.dispose]();
      throw error;
    }
  }
  #zero(page: number): void {
    for (const held of this.#held(page)) {
      const size = held.size / this.pages;
      using row = held.flat(page * size, size);
      row.engine.upload(new DTYPES[row.dtype].array(size), row);
    }
  }
  /** Bytes allocated. */
  get byteLength(): number {
    return this.pages * this.pageBytes + this.residualPages * this.residualPageBytes;
  }
  /** Key pages of the group's i-th layer, [P, Hkv, pageSize, D]. */
  k(layer: number): Pages {
    return this.#layers[layer]!.k.pages();
  }
  /** Value pages of the group's i-th layer, [P, Hkv, pageSize, Dv]. */
  v(layer: number): Pages {
    return this.#layers[layer]!.v.pages();
  }
  /** The memory in which a page has a part: each layer's keys, then its values. */
  #held(page: number): HeldPages[] {
    const planes = this.#layers.flatMap(({ k, v }) => [k, v]);
    if (page < this.pages) return planes.flatMap(({ owned }) => owned);
    return planes.flatMap(({ residual }) => residual ?? []);
  }
  /** Copies rows 0 .. rows - 1 of one page to another of its kind, rows of floats or each with its scale. Throws what the engine's copy throws. */
  copyRows(from: number, to: number, rows: number): void {
    const first = from < this.pages ? 0 : this.pages;
    for (const { tensor } of this.#held(from)) {
      using source = tensor.select(0, from - first); // [Hkv, pageSize, w]
      using target = tensor.select(0, to - first);
      using used = source.slice(1, 0, rows);
      using place = target.slice(1, 0, rows);
      copyInto(used, place);
    }
  }
  /** Bytes of this page: {@link pageBytes} or {@link residualPageBytes}. */
  bytesOf(page: number): number {
    return page < this.pages ? this.pageBytes : this.residualPageBytes;
  }
  /**
   * The bytes of a page: each layer's keys, then its values, codes before their scales; zeros for the rows from `rows` on, which an
   * encoded page has none of. A copy. Throws DeviceError where the host cannot read the memory.
   */
  readPage(page: number, rows: number = this.layout.pageSize): Uint8Array<ArrayBuffer> {
    return this.#join(page, this.#parts(page), rows);
  }
  #join(page: number, parts: readonly Uint8Array[], rows: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.bytesOf(page));
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
    return this.engine.device === "cpu" ? this.readPage(page, rows) : this.#download(page, rows);
  }
  async #download(page: number, rows: number): Promise<Uint8Array<ArrayBuffer>> {
    const parts = this.#flats(page);
    try {
      const arrays = await Promise.all(parts.map((part) => part.read()));
      return this.#join(
        page,
        arrays.map(({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength)),
        rows,
      );
    } finally {
      for (const part of parts) part[Symbol.dispose]();
    }
  }
  /** Stores what {@link readPage} returned. Throws ArgumentError for a wrong number of bytes or the null page. */
  writePage(page: number, bytes: Uint8Array): void {
    const expected = this.bytesOf(page);
    if (bytes.length !== expected || page < 1) {
      throw new ArgumentError(
        `[kvcache] page ${page} takes ${expected} bytes, and page 0 none; got ${bytes.length}`,
        { page, bytes: bytes.length, pageBytes: expected },
      );
    }
    let at = 0;
    if (this.engine.device === "cpu") {
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
  /** The first page of this one's kind, residual or not, and how many there are. Throws ArgumentError. */
  #kindOf(page: number): readonly [first: number, count: number] {
    const { pages, residualPages } = this;
    if (Number.isInteger(page) && page >= 0 && page < pages + residualPages)
      return page < pages ? [0, pages] : [pages, residualPages];
    throw new ArgumentError(`[kvcache] there is no page ${page}; pages are 0..${pages + residualPages - 1}`, {
      page,
      pages: pages + residualPages,
    });
  }
  /** Tensors over a page's memory, one for each tensor that has a part of it; the caller disposes them. */
  #flats(page: number): Tensor[] {
    const [first, count] = this.#kindOf(page);
    return this.#held(page).map((held) => held.flat((held.size / count) * (page - first), held.size / count));
  }
  /** A page's memory, one part for each tensor that has one. */
  #parts(page: number): Uint8Array[] {
    const [first, count] = this.#kindOf(page);
    return this.#held(page).map(({ tensor, byteLength }) => {
      const bytes = byteLength / count;
      const at = (page - first) * bytes;
      const part = tensor.storage.hostPart(at, bytes);
      if (part === undefined) {
        throw new DeviceError(
          `[kvcache] the pages of engine "${tensor.engine.name}" are not in host memory; fetch them`,
        );
      }
      return new Uint8Array(part.buffer, at - part.start, bytes);
    });
  }
  [Symbol.dispose](): void {
    for (const { k, v } of this.#layers) for (const plane of [v, k]) plane[Symbol.dispose]();
  }
}
