import {
  type AppendTarget,
  ArgumentError,
  type BlockTableReader,
  kvAppend,
  OutOfMemoryError,
  type PagedView,
  type Pages,
  Tensor,
} from "@heed/tensor";
import { type GroupTable, StepTables, TableMemory } from "./block-table.ts";
import { StateError } from "./errors.ts";
import { pollFences } from "./fences.ts";
import { claimFixed, type FixedTable } from "./fixed-table.ts";
import { requireOpen, requirePresent, type Sequence, stateOf } from "./sequence.ts";
import {
  type CacheState,
  type GroupState,
  grown,
  pagesFor,
  type Replaced,
  requireLive,
  requireWhole,
  type SequenceState,
} from "./state.ts";
import {
  choosePages,
  dropReplaced,
  returnPages,
  type StepEntry,
  type StepPages,
  takePages,
  unlistPages,
} from "./step-pages.ts";
import { expirePriorities, publishBlocks } from "./prefixes.ts";
import { encodeFullPages, sealFullPages } from "./seal.ts";
import { slide } from "./window.ts";

/** New tokens for one sequence. With 0 the step reads the sequence and adds nothing. */
export interface StepRequest {
  readonly sequence: Sequence;
  readonly tokens: number;
}
let sequencesOf: (step: Step, cache: CacheState) => SequenceState[];
/**
 * The books of the sequences of a cache's open step; for this package only. Throws ArgumentError for a step of another cache, StateError
 * when it is closed.
 */
export function sequencesOfStep(step: Step, cache: CacheState): SequenceState[] {
  return sequencesOf(step, cache);
}
const MAX_ID = 2 ** 31 - 1;
const MOST_TOKENS = 2 ** 31 - 1; // positions are int32

/** Checks the requests and returns the entries of a step. */
function entriesOf(cache: CacheState, requests: readonly StepRequest[]): StepEntry[] {
  const call = ++cache.reserves;
  return requests.map(({ sequence, tokens }, at) => {
    const state = stateOf(sequence);
    requireOpen(state, "reserve");
    requirePresent(state, "reserve");
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
    if (state.length + tokens > MOST_TOKENS) {
      throw new OutOfMemoryError(
        `[kvcache.reserve] a sequence has at most ${MOST_TOKENS} tokens; got ${state.length} and ${tokens} more`,
        { length: state.length, tokens },
      );
    }
    state.lastReserve = call;
    return { sequence: state, tokens };
  });
}
/** Memory for the step's tables: the caller's, or one that no other step uses. */
function takeMemory(
  cache: CacheState,
  entries: readonly StepEntry[],
  table: FixedTable | undefined,
): TableMemory {
  const memory =
    table === undefined
      ? (cache.idleTables.pop() ?? new TableMemory(cache.engine))
      : claimFixed(table, entries, mostListed(cache, entries));
  memory.inUse = true;
  return memory;
}
/** Pages that the step's sequences will list in the group where they list most. */
function mostListed(cache: CacheState, entries: readonly StepEntry[]): number {
  const listed = cache.groups.map(({ layout }) => {
    let pages = 0;
    for (const e of entries) pages += pagesFor(e.sequence.length + e.tokens, layout.pageSize);
    return pages;
  });
  return Math.max(...listed);
}
function giveBack(cache: CacheState, memory: TableMemory): void {
  memory.inUse = false;
  if (memory.fixedPages === 0) cache.idleTables.push(memory);
}
/** Opens a step: all of its pages and its tables, or an error and no change. See {@link KvCache.reserve}. */
export function openStep(
  cache: CacheState,
  requests: readonly StepRequest[],
  table: FixedTable | undefined,
): Step {
  const entries = entriesOf(cache, requests);
  pollFences(cache);
  expirePriorities(cache);
  const memory = takeMemory(cache, entries, table);
  let pages: StepPages | undefined;
  try {
    pages = choosePages(cache, entries);
    const tables = new StepTables(memory, entries, cache.groups, cache.epoch + 1);
    takePages(cache, pages);
    const step = new Step(cache, entries, pages, memory, tables);
    cache.observer?.({ op: "reserve", step, rows: entries.map((e) => [e.sequence, e.tokens]) });
    return step;
  } catch (error) {
    if (pages !== undefined) unlistPages(cache, entries, pages);
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
  readonly #entries: readonly StepEntry[];
  readonly #pages: StepPages;
  readonly #memory: TableMemory;
  readonly #tables: StepTables;
  readonly #written: Uint8Array; // per layer
  #open = true;
  static {
    sequencesOf = (step, cache) => {
      if (step.#cache !== cache) throw new ArgumentError("[kvcache.fence] a step belongs to another cache");
      step.#require("fence");
      return step.#entries.map(({ sequence }) => sequence);
    };
  }
  /** For the cache; users call `cache.reserve()`. */
  constructor(
    cache: CacheState,
    entries: readonly StepEntry[],
    pages: StepPages,
    memory: TableMemory,
    tables: StepTables,
  ) {
    this.#cache = cache;
    this.#entries = entries;
    this.#pages = pages;
    this.#memory = memory;
    this.#tables = tables;
    this.#written = new Uint8Array(cache.layout.layers);
    for (const { sequence, tokens } of entries) {
      sequence.step = this;
      sequence.pending = tokens;
    }
    cache.epoch = tables.epoch;
    cache.steps.add(this);
  }
  /** New tokens of all sequences, T. */
  get tokens(): number {
    return this.#tables.tokens;
  }
  /** Whether the step was neither committed nor cancelled yet. */
  get isOpen(): boolean {
    return this.#open;
  }
  /** Bytes of the step's tables on the engine. */
  get tableBytes(): number {
    return this.#memory.byteLength;
  }
  /** Tail pages that copies stand for until the step closes; for the cache's own books. */
  get replaced(): readonly Replaced[] {
    return this.#pages.replaced;
  }
  /** int32 [T]: the position of each new token in its sequence. Throws StateError when the step is closed. */
  get positions(): Tensor<"int32"> {
    this.#require("positions");
    return this.#tables.positions;
  }
  /**
   * Stores the new rows of one layer, k [T, Hkv, D] and v [T, Hkv, Dv], converted to its group's dtype; no v where the group has
   * values in keys. Writing a layer again replaces its rows; after a write that failed the layer counts as not written. Throws
   * ArgumentError (no such layer; a v too many or none), ShapeError, DTypeError, DeviceError, StateError, DisposedError.
   */
  write(layer: number, k: Tensor, v?: Tensor): void {
    this.#requireLayer(layer, "write");
    this.#written[layer] = 0; // if the engine fails half way, the rows are a mixture
    const { storage, layout } = this.#groupOf(layer);
    requireValues(layout.valuesInKeys, v);
    const at = this.#cache.indexOf[layer]!;
    const keys = storage.k(at);
    const { slots } = this.#tables.table(this.#cache.groupOf[layer]!);
    if (v !== undefined) kvAppend(k, v, keys, storage.v(at), slots);
    else {
      // The values are written with the keys: 0 columns are left of them.
      using rows = k.slice(-1, 0, 0);
      using none = (keys instanceof Tensor ? keys : keys.codes).slice(-1, 0, 0);
      const pages = keys instanceof Tensor ? none : { ...keys, codes: none as Tensor as Tensor<"uint8"> };
      kvAppend(k, rows, keys, pages, slots);
    }
    this.#written[layer] = 1;
  }
  /**
   * As {@link write}, by `append`, which puts the new rows of every slot into the given pages; it converts to their dtype. Returns
   * false, having called nothing, where the layer has values in keys or quantised pages. Same errors, and those of `append`.
   */
  writeWith(layer: number, append: (target: AppendTarget) => void): boolean {
    this.#requireLayer(layer, "write");
    const { storage, layout } = this.#groupOf(layer);
    const at = this.#cache.indexOf[layer]!;
    const [kPages, vPages] = [storage.k(at), storage.v(at)];
    if (layout.valuesInKeys || !(kPages instanceof Tensor) || !(vPages instanceof Tensor)) return false;
    this.#written[layer] = 0;
    const { slots } = this.#tables.table(this.#cache.groupOf[layer]!);
    append({ kPages, vPages, slots });
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
   * The pages of the layer's group and their table for this step, valid until the step closes. Throws ArgumentError (no such layer), StateError when
   * the layer has not been written (its new rows would be whatever the pages held) or the step is closed.
   */
  view(layer: number): PagedView<Pages> & { readonly table: GroupTable } {
    this.#requireLayer(layer, "view");
    if (this.#written[layer] === 0 && this.tokens > 0) {
      throw new StateError(
        `[kvcache.view] layer ${layer} has not written its new rows; call write(${layer}, k, v) first`,
        { layer },
      );
    }
    const { storage, layout } = this.#groupOf(layer);
    const at = this.#cache.indexOf[layer]!;
    const table = this.#tables.table(this.#cache.groupOf[layer]!);
    const keptSinks = layout.window === Infinity ? undefined : layout.sinks;
    return { kPages: storage.k(at), vPages: storage.v(at), table, keptSinks };
  }
  /**
   * Makes the new tokens part of their sequences, encodes "int4" pages that are full for good, lets go of pages behind windows, and closes
   * the step. `ids` [T], whole numbers from 0 to 2^31 - 1, are kept for `sequence.tokenIds`. Throws StateError unless every layer has
   * written, ArgumentError for ids that do not fit, what encoding throws; then the step stays open and nothing has changed.
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
    const full = encodeFullPages(this.#cache, this.#entries, this);
    this.#append(ids);
    this.#cache.tokens += this.tokens;
    dropReplaced(this.#cache, this.#pages);
    sealFullPages(this.#cache, full);
    this.#close();
    for (const { sequence, tokens } of this.#entries) {
      if (tokens === 0) continue;
      publishBlocks(this.#cache, sequence);
      slide(this.#cache, sequence);
    }
    this.#cache.observer?.({ op: "commit", step: this, ids });
  }
  /** Gives the room back and closes the step; lengths and the order of free pages stay as before it. Throws StateError when closed. */
  cancel(): void {
    this.#require("cancel");
    returnPages(this.#cache, this.#entries, this.#pages);
    this.#close();
    this.#cache.observer?.({ op: "cancel", step: this });
  }
  /** Cancels the step if it is still open. */
  [Symbol.dispose](): void {
    if (this.#open) this.cancel();
  }
  #append(ids: ArrayLike<number> | undefined): void {
    let at = 0;
    for (const { sequence, tokens } of this.#entries) {
      const { tokenIds, length } = sequence;
      if (tokenIds !== undefined) {
        for (let t = 0; t < tokens; t++) tokenIds[length + t] = ids === undefined ? -1 : ids[at + t]!;
      }
      sequence.length += tokens;
      at += tokens;
    }
  }
  #checkIds(ids: ArrayLike<number>): void {
    if (ids.length !== this.tokens) {
      throw new ArgumentError(`[kvcache.commit] the step has ${this.tokens} tokens; got ${ids.length} ids`, {
        tokens: this.tokens,
        ids: ids.length,
      });
    }
    for (let t = 0; t < ids.length; t++) {
      const id = ids[t]!;
      if (!(Number.isInteger(id) && id >= 0 && id <= MAX_ID)) requireWhole(id, 0, MAX_ID, `id ${t}`);
    }
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
    this.#tables.close();
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
  #groupOf(layer: number): GroupState {
    return this.#cache.groups[this.#cache.groupOf[layer]!]!;
  }
  #requireLayer(layer: number, what: string): void {
    this.#require(what);
    requireWhole(layer, 0, this.#written.length - 1, "layer");
  }
}
function requireValues(valuesInKeys: boolean, v: Tensor | undefined): void {
  if ((v === undefined) === valuesInKeys) return;
  throw new ArgumentError(
    valuesInKeys
      ? "[kvcache.write] this layer has values in keys; write(layer, k) takes no v"
      : "[kvcache.write] v is missing: write(layer, k, v), or give the cache the option valuesInKeys",
    { valuesInKeys },
  );
}
