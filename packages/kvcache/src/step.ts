import {
  type AppendTarget,
  ArgumentError,
  type BlockTableReader,
  kvAppend,
  OutOfMemoryError,
  type PagedView,
  type Tensor,
} from "@heed/tensor";
import { StepTable, type TableEntry, TableMemory } from "./block-table.ts";
import { StateError } from "./errors.ts";
import { claimFixed, type FixedTable } from "./fixed-table.ts";
import { requireOpen, type Sequence, stateOf } from "./sequence.ts";
import { type CacheState, grown, pagesFor, requireLive, requireWhole } from "./state.ts";

/** New tokens for one sequence. With 0 the step reads the sequence and adds nothing. */
export interface StepRequest {
  readonly sequence: Sequence;
  readonly tokens: number;
}
const MAX_ID = 2 ** 31 - 1;

/** Checks the requests and returns the entries of a step. */
function entriesOf(cache: CacheState, requests: readonly StepRequest[]): TableEntry[] {
  const call = ++cache.reserves;
  return requests.map(({ sequence, tokens }, at) => {
    const state = stateOf(sequence);
    requireOpen(state, "reserve");
    if (state.cache !== cache) {
      throw new ArgumentError(`[kvcache.reserve] request ${at} names a sequence of another cache`, { at });
    }
    if (state.lastReserve === call) {
      throw new ArgumentError(`[kvcache.reserve] request ${at} names a sequence for the second time`, { at });
    }
    if (state.step !== undefined) {
      throw new StateError(
        `[kvcache.reserve] the sequence of request ${at} is in an open step; commit or cancel that first`,
        { at },
      );
    }
    requireWhole(tokens, 0, Number.MAX_SAFE_INTEGER, "tokens to reserve");
    state.lastReserve = call;
    return { sequence: state, tokens };
  });
}
/** Gives each sequence its pages for the step. */
function takePages(cache: CacheState, entries: readonly TableEntry[]): void {
  const { pool, layout } = cache;
  for (const { sequence, tokens } of entries) {
    const wanted = pagesFor(sequence.length + tokens, layout.pageSize);
    sequence.pageIds = grown(sequence.pageIds, wanted);
    while (sequence.pageCount < wanted) sequence.pageIds[sequence.pageCount++] = pool.take();
  }
}
/** Undoes {@link takePages}: the free list becomes what it was, unless others have used it since. */
function restorePages(cache: CacheState, entries: readonly TableEntry[]): void {
  for (let n = entries.length - 1; n >= 0; n--) {
    const { sequence } = entries[n]!;
    const kept = pagesFor(sequence.length, cache.layout.pageSize);
    while (sequence.pageCount > kept) cache.pool.restore(sequence.pageIds[--sequence.pageCount]!);
  }
}
function requireRoom(cache: CacheState, entries: readonly TableEntry[]): void {
  let needed = 0;
  for (const { sequence, tokens } of entries) {
    needed += pagesFor(sequence.length + tokens, cache.layout.pageSize) - sequence.pageCount;
  }
  const { free, count: total } = cache.pool;
  if (needed <= free) return;
  throw new OutOfMemoryError(
    `[kvcache.reserve] the step needs ${needed} pages of ${cache.layout.pageSize} tokens, but ${free} of ${total} are free; release or truncate a sequence, or ask for fewer tokens`,
    { needed, free, total },
  );
}
/** Memory for the step's table: the caller's, or one that no other step uses. */
function takeMemory(
  cache: CacheState,
  entries: readonly TableEntry[],
  table: FixedTable | undefined,
): TableMemory {
  let pages = 0;
  for (const e of entries) pages += pagesFor(e.sequence.length + e.tokens, cache.layout.pageSize);
  const memory =
    table === undefined
      ? (cache.idleTables.pop() ?? new TableMemory(cache.engine))
      : claimFixed(table, entries, pages);
  memory.inUse = true;
  return memory;
}
function giveBack(cache: CacheState, memory: TableMemory): void {
  memory.inUse = false;
  if (memory.fixedPages === 0) cache.idleTables.push(memory);
}
/** Opens a step: all of its pages and its table, or an error and no change. See {@link KvCache.reserve}. */
export function openStep(
  cache: CacheState,
  requests: readonly StepRequest[],
  table: FixedTable | undefined,
): Step {
  const entries = entriesOf(cache, requests);
  requireRoom(cache, entries);
  const memory = takeMemory(cache, entries, table);
  try {
    takePages(cache, entries);
    return new Step(
      cache,
      entries,
      memory,
      new StepTable(memory, entries, cache.layout.pageSize, cache.epoch + 1),
    );
  } catch (error) {
    restorePages(cache, entries);
    giveBack(cache, memory);
    throw error;
  }
}

/**
 * Room for new tokens of one or more sequences. Every layer writes its rows and may then read them with all earlier ones; `commit`
 * makes them part of the sequences, `cancel` gives the room back as if it had never been taken. `using` cancels a step left open.
 */
export class Step implements BlockTableReader {
  readonly #cache: CacheState;
  readonly #entries: readonly TableEntry[];
  readonly #memory: TableMemory;
  readonly #table: StepTable;
  readonly #written: Uint8Array; // per layer
  #open = true;

  /** For the cache; users call `cache.reserve()`. */
  constructor(cache: CacheState, entries: readonly TableEntry[], memory: TableMemory, table: StepTable) {
    this.#cache = cache;
    this.#entries = entries;
    this.#memory = memory;
    this.#table = table;
    this.#written = new Uint8Array(cache.layout.layers);
    for (const { sequence, tokens } of entries) {
      sequence.step = this;
      sequence.pending = tokens;
    }
    cache.epoch = table.epoch;
    cache.steps.add(this);
  }
  /** New tokens of all sequences, T. */
  get tokens(): number {
    return this.#table.positions.shape[0]!;
  }
  /** Whether the step was neither committed nor cancelled yet. */
  get isOpen(): boolean {
    return this.#open;
  }
  /** Bytes of the step's table on the engine. */
  get tableBytes(): number {
    return this.#memory.byteLength;
  }
  /** int32 [T]: the position of each new token in its sequence. Throws StateError when the step is closed. */
  get positions(): Tensor<"int32"> {
    this.#require("positions");
    return this.#table.refresh().positions;
  }
  /**
   * Stores the new rows of one layer, k [T, Hkv, D] and v [T, Hkv, Dv], converted to the cache's dtype; no v where the cache has
   * values in keys. Writing a layer again replaces its rows; after a write that failed the layer counts as not written. Throws
   * ArgumentError (no such layer; a v too many or none), ShapeError, DTypeError, DeviceError, StateError, DisposedError.
   */
  write(layer: number, k: Tensor, v?: Tensor): void {
    this.#requireLayer(layer, "write");
    this.#written[layer] = 0; // if the engine fails half way, the rows are a mixture
    this.#requireValues(v);
    const keys = this.#cache.kPages[layer]!.tensor;
    const { slots } = this.#table.refresh();
    if (v !== undefined) kvAppend(k, v, keys, this.#cache.vPages[layer]!.tensor, slots);
    else {
      // The values are written with the keys: 0 columns are left of them.
      using rows = k.slice(-1, 0, 0);
      using pages = keys.slice(-1, 0, 0);
      kvAppend(k, rows, keys, pages, slots);
    }
    this.#written[layer] = 1;
  }
  /**
   * As {@link write}, by `append`, which puts the new rows of every slot into the given pages; it converts to their dtype. Returns
   * false, having called nothing, where the cache has values in keys. Same errors, and those of `append`.
   */
  writeWith(layer: number, append: (target: AppendTarget) => void): boolean {
    this.#requireLayer(layer, "write");
    if (this.#cache.layout.valuesInKeys) return false;
    const [kPages, vPages] = [this.#cache.kPages[layer]!.tensor, this.#cache.vPages[layer]!.tensor];
    this.#written[layer] = 0;
    append({ kPages, vPages, slots: this.#table.refresh().slots });
    this.#written[layer] = 1;
    return true;
  }
  /**
   * Says that a replayed tape has written the rows of every layer, which this step cannot see. The tape must have been recorded over a
   * step of the same {@link FixedTable}. Throws StateError when the step is closed.
   */
  markWritten(): void {
    this.#require("markWritten");
    this.#written.fill(1);
  }
  /**
   * The layer's pages and the table of this step, valid until the step closes. Throws ArgumentError (no such layer), StateError when
   * the layer has not been written (its new rows would be whatever the pages held) or the step is closed.
   */
  view(layer: number): PagedView {
    this.#requireLayer(layer, "view");
    if (this.#written[layer] === 0 && this.tokens > 0) {
      throw new StateError(
        `[kvcache.view] layer ${layer} has not written its new rows; call write(${layer}, k, v) first`,
        { layer },
      );
    }
    return {
      kPages: this.#cache.kPages[layer]!.tensor,
      vPages: this.#cache.vPages[layer]!.tensor,
      table: this.#table.refresh(),
    };
  }
  /**
   * Makes the new tokens part of their sequences and closes the step. `ids` [T], whole numbers from 0 to 2^31 - 1, are kept for
   * `sequence.tokenIds`. Throws StateError unless every layer has written, ArgumentError for ids that do not fit; then the step
   * stays open and nothing has changed.
   */
  commit(ids?: ArrayLike<number>): void {
    this.#require("commit");
    const missing = this.tokens === 0 ? -1 : this.#written.indexOf(0);
    if (missing >= 0) {
      throw new StateError(
        `[kvcache.commit] layer ${missing} of ${this.#written.length} has not written its new rows; write every layer, or cancel the step`,
        { layer: missing, layers: this.#written.length },
      );
    }
    if (ids !== undefined) this.#checkIds(ids);
    this.#growIds(ids !== undefined);
    let at = 0;
    for (const { sequence, tokens } of this.#entries) {
      const { tokenIds, length } = sequence;
      for (let t = 0; t < tokens && tokenIds !== undefined; t++) tokenIds[length + t] = ids?.[at + t] ?? -1;
      sequence.length += tokens;
      at += tokens;
    }
    this.#cache.tokens += at;
    this.#close();
  }
  /** Gives the room back and closes the step; lengths and the order of free pages stay as before it. Throws StateError when closed. */
  cancel(): void {
    this.#require("cancel");
    restorePages(this.#cache, this.#entries);
    this.#close();
  }
  /** Cancels the step if it is still open. */
  [Symbol.dispose](): void {
    if (this.#open) this.cancel();
  }
  #checkIds(ids: ArrayLike<number>): void {
    if (ids.length !== this.tokens) {
      throw new ArgumentError(`[kvcache.commit] the step has ${this.tokens} tokens; got ${ids.length} ids`, {
        tokens: this.tokens,
        ids: ids.length,
      });
    }
    for (let t = 0; t < ids.length; t++) requireWhole(ids[t], 0, MAX_ID, `id ${t}`);
  }
  /** Makes room for ids where they are given now or were before, before any length moves. */
  #growIds(given: boolean): void {
    for (const { sequence, tokens } of this.#entries) {
      if (tokens === 0 || (sequence.tokenIds === undefined && !given)) continue;
      sequence.tokenIds = grown(
        sequence.tokenIds ?? new Int32Array(sequence.length).fill(-1),
        sequence.length + tokens,
      );
    }
  }
  #close(): void {
    this.#open = false;
    for (const { sequence } of this.#entries) {
      sequence.step = undefined;
      sequence.pending = 0;
    }
    this.#table.close();
    giveBack(this.#cache, this.#memory);
    this.#cache.steps.delete(this);
  }
  #require(what: string): void {
    requireLive(this.#cache, what);
    if (!this.#open)
      throw new StateError(`[kvcache.${what}] the step was committed or cancelled; reserve another one`, {
        what,
      });
  }
  #requireValues(v: Tensor | undefined): void {
    const { valuesInKeys } = this.#cache.layout;
    if ((v === undefined) === valuesInKeys) return;
    throw new ArgumentError(
      valuesInKeys
        ? "[kvcache.write] this cache has values in keys; write(layer, k) takes no v"
        : "[kvcache.write] v is missing: write(layer, k, v), or give the cache the option valuesInKeys",
      { valuesInKeys },
    );
  }
  #requireLayer(layer: number, what: string): void {
    this.#require(what);
    requireWhole(layer, 0, this.#written.length - 1, "layer");
  }
}
