import type { Engine, PageTable, Tensor } from "@heed/tensor";
import { Held } from "./held.ts";
import type { SequenceState } from "./state.ts";

/** One sequence of a step. */
export interface TableEntry {
  readonly sequence: SequenceState;
  /** New tokens of this step. */
  readonly tokens: number;
}
/** Parts of a table in the order in which they lie in memory. */
const PARTS = ["queryIndptr", "indptr", "lengths", "indices", "slots", "positions"] as const;
type Part = (typeof PARTS)[number];
type Ints = Tensor<"int32">;
const ALIGN = 16; // int32 elements in 64 bytes, so that each part starts on a cache line

/** Where each part of a table of N sequences, `pages` pages and T new tokens begins, and its length. */
function layOut(
  N: number,
  pages: number,
  T: number,
): { at: Record<Part, number>; size: Record<Part, number>; total: number } {
  const size: Record<Part, number> = {
    queryIndptr: N + 1,
    indptr: N + 1,
    lengths: N,
    indices: pages,
    slots: T,
    positions: T,
  };
  const at = {} as Record<Part, number>;
  let total = 0;
  for (const part of PARTS) {
    at[part] = total;
    total += Math.ceil(size[part] / ALIGN) * ALIGN;
  }
  return { at, size, total };
}

/** Memory of one table, reused by one step after another: an int32 block on the engine and its image on the host. */
export class TableMemory {
  readonly #engine: Engine;
  #held: Held<"int32">;
  host: Int32Array<ArrayBuffer>;
  /** Pages for which a table always has room, so that its parts stay in place; 0: as many as it lists. */
  readonly fixedPages: number;
  /** Whether a step uses it. */
  inUse = false;
  constructor(engine: Engine, fixedPages = 0) {
    this.#engine = engine;
    this.fixedPages = fixedPages;
    this.#held = new Held(engine, "int32", 256);
    this.host = new Int32Array(256);
  }
  /** Bytes on the engine. */
  get byteLength(): number {
    return this.#held.byteLength;
  }
  /** Makes room for `size` elements; what was there is lost. Throws OutOfMemoryError, and then nothing has changed. */
  reserve(size: number): void {
    if (size <= this.host.length) return;
    const capacity = Math.max(size, 2 * this.host.length);
    const held = new Held(this.#engine, "int32", capacity);
    this.#held[Symbol.dispose]();
    this.#held = held;
    this.host = new Int32Array(capacity);
  }
  /** Copies the first `size` elements of the host's image to the engine, in one transfer. */
  upload(size: number): void {
    using all = this.#held.view([size]);
    this.#engine.upload(this.host.subarray(0, size), all);
  }
  /** A tensor over `size` elements from `offset` on. */
  view(offset: number, size: number): Ints {
    return this.#held.view([size], offset) as Tensor as Ints;
  }
  [Symbol.dispose](): void {
    this.#held[Symbol.dispose]();
  }
}

/**
 * The page table of one step, with the positions of its new tokens. Built on the host in O(pages + tokens), sent in one transfer;
 * every build has a higher epoch than the last. Its tensors are disposed when the step closes.
 */
export class StepTable implements PageTable {
  readonly epoch: number;
  queryIndptr!: Ints; // [N + 1]
  indptr!: Ints; // [N + 1]
  indices!: Ints; // [pages]
  lengths!: Ints; // [N], new tokens included
  slots!: Ints; // [T]
  positions!: Ints; // [T]
  readonly #memory: TableMemory;
  readonly #layout: ReturnType<typeof layOut>;

  /** Throws OutOfMemoryError when the memory cannot grow, or what the engine's upload throws. */
  constructor(memory: TableMemory, entries: readonly TableEntry[], pageSize: number, epoch: number) {
    let pages = 0;
    let T = 0;
    for (const { sequence, tokens } of entries) {
      pages += sequence.pageCount;
      T += tokens;
    }
    this.epoch = epoch;
    this.#memory = memory;
    this.#layout = layOut(entries.length, Math.max(pages, memory.fixedPages), T);
    memory.reserve(this.#layout.total);
    this.#build(entries, pageSize);
    memory.upload(this.#layout.total);
    for (const part of PARTS) this[part] = this.#view(part);
  }
  #view(part: Part): Ints {
    return this.#memory.view(this.#layout.at[part], this.#layout.size[part]);
  }
  #build(entries: readonly TableEntry[], pageSize: number): void {
    const { host } = this.#memory;
    const { at } = this.#layout;
    let query = 0; // query rows so far
    let listed = 0; // pages so far
    for (let n = 0; n < entries.length; n++) {
      const { sequence, tokens } = entries[n]!;
      const { pageIds, pageCount, length } = sequence;
      host[at.queryIndptr + n] = query;
      host[at.indptr + n] = listed;
      host[at.lengths + n] = length + tokens;
      for (let i = 0; i < pageCount; i++) host[at.indices + listed + i] = pageIds[i]!;
      for (let t = 0, p = length; t < tokens; t++, p++) {
        host[at.slots + query + t] = pageIds[Math.floor(p / pageSize)]! * pageSize + (p % pageSize);
        host[at.positions + query + t] = p;
      }
      query += tokens;
      listed += pageCount;
    }
    host[at.queryIndptr + entries.length] = query;
    host[at.indptr + entries.length] = listed;
  }
  /** Makes anew the tensors that a scope has disposed. */
  refresh(): this {
    for (const part of PARTS) if (this[part].disposed) this[part] = this.#view(part);
    return this;
  }
  /** Disposes the tensors; the memory can serve another step. */
  close(): void {
    for (const part of PARTS) this[part][Symbol.dispose]();
  }
}
