import type { Engine, PageTable, Tensor } from "@heed/tensor";
import { Held } from "./held.ts";
import type { GroupState } from "./state.ts";
import type { StepEntry } from "./step-pages.ts";

type Ints = Tensor<"int32">;
/** Parts that the groups share, and those that each has for itself. */
const SHARED = ["queryIndptr", "lengths", "positions"] as const;
const OWN = ["indptr", "lastPageLengths", "slots", "indices"] as const;
type Place<Part extends string> = { readonly [P in Part]: readonly [offset: number, size: number] };
/** Where each part of a step's tables begins in their memory, and its length. */
interface Places {
  readonly shared: Place<(typeof SHARED)[number]>;
  readonly groups: readonly Place<(typeof OWN)[number]>[];
  readonly total: number;
}
const ALIGN = 16; // int32 elements in 64 bytes, so that each part starts on a cache line

/** Places for tables of N sequences with T new tokens and, per group, so many pages. */
function placesOf(N: number, T: number, pages: readonly number[]): Places {
  let total = 0;
  const place = (size: number): readonly [number, number] => {
    const at = total;
    total += Math.ceil(size / ALIGN) * ALIGN;
    return [at, size];
  };
  const shared = { queryIndptr: place(N + 1), lengths: place(N), positions: place(T) };
  const groups = pages.map((count) => ({
    indptr: place(N + 1),
    lastPageLengths: place(N),
    slots: place(T),
    indices: place(count),
  }));
  return { shared, groups, total };
}
/** Where a group's pages lie in the last table of a memory: lists with the same stamps are copied from there, many at once. */
interface Built {
  offset: number; // of the indices
  entries: number;
  readonly stamps: number[];
  readonly starts: number[]; // among the indices
}

/** Memory of the tables of one step, reused by one step after another: an int32 block on the engine and two images on the host. */
export class TableMemory {
  readonly #engine: Engine;
  #held: Held<"int32">;
  /** The image that is built. */
  host: Int32Array<ArrayBuffer>;
  /** The image built before, to which {@link built} refers. */
  last: Int32Array<ArrayBuffer>;
  /** Pages for which a group's table always has room, so that its parts stay in place; 0: as many as it lists. */
  readonly fixedPages: number;
  /** Whether a step uses it. */
  inUse = false;
  /** Per group, what the image holds. */
  readonly built: Built[] = [];
  constructor(engine: Engine, fixedPages = 0, size = 256) {
    this.#engine = engine;
    this.fixedPages = fixedPages;
    this.#held = new Held(engine, "int32", size);
    this.host = new Int32Array(size);
    this.last = new Int32Array(size);
  }
  /** Bytes on the engine. */
  get byteLength(): number {
    return this.#held.byteLength;
  }
  /** Makes room for a new image of `size` elements. Throws OutOfMemoryError, and then nothing has changed. */
  begin(size: number): void {
    if (size <= this.host.length) {
      [this.host, this.last] = [this.last, this.host];
      return;
    }
    const capacity = Math.max(size, 2 * this.host.length);
    const held = new Held(this.#engine, "int32", capacity);
    this.#held[Symbol.dispose]();
    this.#held = held;
    this.host = new Int32Array(capacity);
    this.last = new Int32Array(capacity);
    this.built.length = 0;
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

/** The page table of one group in a step. Its tensors are disposed when the step closes. */
export interface GroupTable extends PageTable {
  /** int32 [N]: rows in use of each sequence's last page, 1 .. pageSize, or 0 for an empty sequence, as FlashInfer's kernels take it. */
  readonly lastPageLengths: Tensor<"int32">;
}

/**
 * The page tables of one step, one a group, with the positions of its new tokens. Built on the host and sent in one transfer; the pages
 * of sequences that have the same ones as in the memory's last table are copied in runs. Every build has a higher epoch than the last.
 */
export class StepTables {
  readonly epoch: number;
  /** New tokens, T. */
  readonly tokens: number;
  readonly #memory: TableMemory;
  readonly #places: Places;
  readonly #shared: Partial<Record<(typeof SHARED)[number], Ints>> = {};
  readonly #tables: (GroupTable | undefined)[];

  /** Throws OutOfMemoryError when the memory cannot grow, or what the engine's upload throws. */
  constructor(
    memory: TableMemory,
    entries: readonly StepEntry[],
    groups: readonly GroupState[],
    epoch: number,
  ) {
    let T = 0;
    for (const { tokens } of entries) T += tokens;
    const pages = groups.map((_, n) => {
      let listed = 0;
      for (const { sequence } of entries) listed += sequence.lists[n]!.count;
      return Math.max(listed, memory.fixedPages);
    });
    this.epoch = epoch;
    this.tokens = T;
    this.#memory = memory;
    this.#places = placesOf(entries.length, T, pages);
    this.#tables = groups.map(() => undefined);
    memory.begin(this.#places.total);
    this.#buildShared(entries);
    groups.forEach((group, n) => this.#buildGroup(entries, n, group));
    memory.upload(this.#places.total);
  }
  #buildShared(entries: readonly StepEntry[]): void {
    const { host } = this.#memory;
    const { queryIndptr, lengths, positions } = this.#places.shared;
    let query = 0; // query rows so far
    for (let n = 0; n < entries.length; n++) {
      const { sequence, tokens } = entries[n]!;
      const { length } = sequence;
      host[queryIndptr[0] + n] = query;
      host[lengths[0] + n] = length + tokens;
      const at = positions[0] + query;
      for (let t = 0; t < tokens; t++) host[at + t] = length + t;
      query += tokens;
    }
    host[queryIndptr[0] + entries.length] = query;
  }
  #buildGroup(entries: readonly StepEntry[], group: number, { layout, residuals }: GroupState): void {
    const { host } = this.#memory;
    const { pageSize } = layout;
    const names = residuals?.names;
    const { indptr, lastPageLengths, slots } = this.#places.groups[group]!;
    let slot = slots[0];
    let listed = 0; // pages so far
    for (let n = 0; n < entries.length; n++) {
      const { sequence, tokens } = entries[n]!;
      const { ids, count } = sequence.lists[group]!;
      const { length } = sequence;
      host[indptr[0] + n] = listed;
      host[lastPageLengths[0] + n] = count === 0 ? 0 : length + tokens - (count - 1) * pageSize;
      listed += count;
      if (tokens === 0) continue;
      let i = Math.floor(length / pageSize);
      let row = length - i * pageSize;
      for (let t = 0; t < tokens; t++, row++) {
        if (row === pageSize) [i, row] = [i + 1, 0];
        host[slot++] = (names === undefined ? ids[i]! : names[ids[i]!]!) * pageSize + row;
      }
    }
    host[indptr[0] + entries.length] = listed;
    this.#buildIndices(entries, group, names);
  }
  #buildIndices(entries: readonly StepEntry[], group: number, names: Int32Array | undefined): void {
    const { host, last } = this.#memory;
    const offset = this.#places.groups[group]!.indices[0];
    const built = (this.#memory.built[group] ??= { offset, entries: 0, stamps: [], starts: [] });
    const { stamps, starts } = built;
    let at = offset;
    let from = 0; // where a run of lists that are as before begins in the last image, its place in this one, and its length
    let to = 0;
    let run = 0;
    for (let n = 0; n < entries.length; n++) {
      const { ids, count, stamp } = entries[n]!.sequence.lists[group]!;
      if (n < built.entries && stamps[n] === stamp) {
        if (run === 0) [from, to] = [built.offset + starts[n]!, at];
        run += count;
      } else {
        if (run > 0) host.set(last.subarray(from, from + run), to);
        run = 0;
        for (let i = 0; i < count; i++) host[at + i] = ids[i]!;
        if (names !== undefined) for (let i = 0; i < count; i++) host[at + i] = names[ids[i]!]!;
        stamps[n] = stamp;
      }
      starts[n] = at - offset;
      at += count;
    }
    if (run > 0) host.set(last.subarray(from, from + run), to);
    built.offset = offset;
    built.entries = entries.length;
  }
  #view([offset, size]: readonly [number, number]): Ints {
    return this.#memory.view(offset, size);
  }
  #sharedPart(part: (typeof SHARED)[number]): Ints {
    const tensor = this.#shared[part];
    if (tensor !== undefined && !tensor.disposed) return tensor;
    return (this.#shared[part] = this.#view(this.#places.shared[part]));
  }
  /** int32 [T]: the position of each new token in its sequence. */
  get positions(): Ints {
    return this.#sharedPart("positions");
  }
  /** The table of one group; made anew when a scope has disposed its tensors. */
  table(group: number): GroupTable {
    const last = this.#tables[group];
    if (last !== undefined && isAlive(last)) return last;
    if (last !== undefined) disposeOwn(last);
    const places = this.#places.groups[group]!;
    const table: GroupTable = {
      queryIndptr: this.#sharedPart("queryIndptr"),
      lengths: this.#sharedPart("lengths"),
      indptr: this.#view(places.indptr),
      lastPageLengths: this.#view(places.lastPageLengths),
      slots: this.#view(places.slots),
      indices: this.#view(places.indices),
      epoch: this.epoch,
    };
    this.#tables[group] = table;
    return table;
  }
  /** Disposes the tensors; the memory can serve another step. */
  close(): void {
    for (const part of SHARED) this.#shared[part]?.[Symbol.dispose]();
    for (const table of this.#tables) if (table !== undefined) disposeOwn(table);
  }
}
function isAlive(table: GroupTable): boolean {
  return ![table.queryIndptr, table.lengths, ...OWN.map((part) => table[part])].some((t) => t.disposed);
}
function disposeOwn(table: GroupTable): void {
  for (const part of OWN) table[part][Symbol.dispose]();
}
