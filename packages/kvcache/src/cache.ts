import {
  ArgumentError,
  DTYPES,
  DTypeError,
  type Engine,
  type FloatDType,
  getEngine,
  isFloat,
} from "@heed/tensor";
import { BlockPool } from "./block-pool.ts";
import { checkCache } from "./check.ts";
import { StateError } from "./errors.ts";
import { FixedTable, type FixedTableOptions } from "./fixed-table.ts";
import { HeldColumns, HeldTensor } from "./held.ts";
import { closeSequence, Sequence } from "./sequence.ts";
import { type CacheLayout, type CacheState, requireLive, requireWhole } from "./state.ts";
import { openStep, type Step, type StepRequest } from "./step.ts";

/** Options of {@link KvCache}. Give exactly one of `maxPages` and `maxBytes`. */
export interface KvCacheOptions {
  readonly layers: number;
  /** Key heads, Hkv. */
  readonly numKvHeads: number;
  /** Head size of keys, D. */
  readonly headDim: number;
  /** Head size of values, Dv; default headDim. */
  readonly valueHeadDim?: number | undefined;
  /**
   * Values are the first valueHeadDim numbers of the key rows and take no memory of their own, as in the absorbed form of latent
   * attention (DeepSeek-AI 2024, arXiv:2405.04434): a token takes Hkv * D numbers a layer. Default false.
   */
  readonly valuesInKeys?: boolean | undefined;
  /** Tokens of a page; default 64, the best on a CPU. */
  readonly pageSize?: number | undefined;
  /** Default float32. */
  readonly dtype?: FloatDType | undefined;
  /** An engine or the name of a registered one; default the default engine. */
  readonly engine?: Engine | string | undefined;
  /** Pages that sequences can use. */
  readonly maxPages?: number | undefined;
  /** Bytes of all pages of all layers, the null page included. */
  readonly maxBytes?: number | undefined;
}
/** What a cache holds. */
export interface CacheStats {
  readonly totalPages: number;
  readonly freePages: number;
  /** Pages of sequences and of open steps. */
  readonly usedPages: number;
  /** Committed tokens. */
  readonly tokens: number;
  readonly sequences: number;
  readonly openSteps: number;
  /** Share of the rows of used pages that hold no committed token; 0 when none is used. */
  readonly waste: number;
  /** Bytes allocated: pages of all layers, the null page included, and tables. */
  readonly bytes: number;
}

function layoutOf(o: KvCacheOptions): CacheLayout {
  const { layers, numKvHeads, headDim, valueHeadDim = headDim, pageSize = 64, dtype = "float32" } = o;
  const { valuesInKeys = false } = o;
  const sizes = { layers, numKvHeads, headDim, valueHeadDim, pageSize };
  for (const [name, value] of Object.entries(sizes)) requireWhole(value, 1, 2 ** 31 - 1, name);
  if (valuesInKeys) requireWhole(valueHeadDim, 1, headDim, "valueHeadDim of values in keys");
  if (!Object.hasOwn(DTYPES, dtype) || !isFloat(dtype)) {
    throw new DTypeError(
      `[kvcache] dtype must be float64, float32, float16 or bfloat16; got ${String(dtype)}`,
      { dtype },
    );
  }
  return { ...sizes, valuesInKeys, dtype };
}
/** Bytes of one page over all layers, keys and values. */
function bytesPerPage(l: CacheLayout): number {
  const width = l.headDim + (l.valuesInKeys ? 0 : l.valueHeadDim);
  return l.layers * l.numKvHeads * l.pageSize * width * DTYPES[l.dtype].bytes;
}
/** Pages for sequences, from whichever limit was given. */
function pageLimit(o: KvCacheOptions, layout: CacheLayout): number {
  if ((o.maxPages === undefined) === (o.maxBytes === undefined)) {
    throw new ArgumentError("[kvcache] give exactly one of maxPages and maxBytes", {
      maxPages: o.maxPages,
      maxBytes: o.maxBytes,
    });
  }
  const most = Math.floor((2 ** 31 - 1) / layout.pageSize) - 1; // a slot, page * pageSize + row, is an int32
  if (o.maxBytes === undefined) {
    requireWhole(o.maxPages, 1, most, "maxPages");
    return o.maxPages;
  }
  requireWhole(
    o.maxBytes,
    2 * bytesPerPage(layout),
    Number.MAX_SAFE_INTEGER,
    "maxBytes (at least two pages, one being the null page)",
  );
  return Math.min(most, Math.floor(o.maxBytes / bytesPerPage(layout)) - 1);
}
/** Keys' and values' pages of every layer, or OutOfMemoryError and none. */
function allocatePages(
  engine: Engine,
  layout: CacheLayout,
  count: number,
): Pick<CacheState, "kPages" | "vPages"> {
  const kPages: HeldTensor<FloatDType>[] = [];
  const vPages: (HeldTensor<FloatDType> | HeldColumns<FloatDType>)[] = [];
  const shape = [count + 1, layout.numKvHeads, layout.pageSize];
  try {
    for (let layer = 0; layer < layout.layers; layer++) {
      const keys = new HeldTensor(engine, layout.dtype, [...shape, layout.headDim]);
      kPages.push(keys);
      vPages.push(
        layout.valuesInKeys
          ? new HeldColumns(keys, layout.valueHeadDim)
          : new HeldTensor(engine, layout.dtype, [...shape, layout.valueHeadDim]),
      );
    }
    return { kPages, vPages };
  } catch (error) {
    for (const pages of [...kPages, ...vPages]) pages[Symbol.dispose]();
    throw error;
  }
}

/**
 * A paged key/value cache (Kwon et al. 2023, arXiv:2309.06180) for layers of one shape. Each layer has pages [P, Hkv, pageSize, D]
 * of keys and [P, Hkv, pageSize, Dv] of values; a page number means the same tokens in every layer. Attention reads the pages in
 * place through the {@link Step} that `reserve` returns. Pages are allocated in full at the start, so that a step never moves them
 * and fails for lack of pages only; page 0 is the null page, which no sequence gets.
 * Throws ArgumentError, DTypeError, OutOfMemoryError, DeviceError.
 */
export class KvCache {
  readonly layout: CacheLayout;
  readonly #state: CacheState;
  constructor(options: KvCacheOptions) {
    const layout = layoutOf(options);
    const count = pageLimit(options, layout);
    const engine = typeof options.engine === "object" ? options.engine : getEngine(options.engine);
    this.layout = layout;
    this.#state = {
      engine,
      layout,
      pool: new BlockPool(count),
      ...allocatePages(engine, layout, count),
      sequences: new Set(),
      steps: new Set(),
      idleTables: [],
      tokens: 0,
      epoch: 0,
      reserves: 0,
      disposed: false,
    };
  }
  /** The engine whose memory holds the pages. */
  get engine(): Engine {
    return this.#state.engine;
  }
  /** A new, empty sequence. Throws DisposedError. */
  open(): Sequence {
    requireLive(this.#state, "open");
    return new Sequence(this.#state);
  }
  /**
   * Room for new tokens of the given sequences, in any mix of prefill and decode; the step's rows are theirs one after the other, in
   * this order. All or nothing: OutOfMemoryError when the free pages do not suffice, ArgumentError for a sequence that is named
   * twice, belongs to another cache, or a number of tokens that is not whole and at least 0, StateError for a sequence in an open
   * step, DisposedError; then nothing has changed. `table` puts the step's table into memory of the caller's, for tapes; errors then also
   * when the step does not fit it.
   */
  reserve(requests: readonly StepRequest[], options: { readonly table?: FixedTable | undefined } = {}): Step {
    requireLive(this.#state, "reserve");
    return openStep(this.#state, requests, options.table);
  }
  /** Memory for the tables of steps of one shape, for `reserve`; see {@link FixedTable}. Throws ArgumentError, OutOfMemoryError. */
  fixedTable(options: FixedTableOptions): FixedTable {
    requireLive(this.#state, "fixedTable");
    return new FixedTable(this.#state.engine, this.#state.pool.count, options);
  }
  /** Walks every invariant of the books in O(pages); throws InvariantError on the first that fails, DisposedError. */
  check(): void {
    requireLive(this.#state, "check");
    checkCache(this.#state);
  }
  /** Pages, tokens and bytes at the moment. Throws DisposedError. */
  stats(): CacheStats {
    requireLive(this.#state, "stats");
    const { pool, tokens, sequences, steps, kPages, vPages, idleTables, layout } = this.#state;
    const usedPages = pool.count - pool.free;
    let bytes = 0;
    for (const held of [...kPages, ...vPages, ...idleTables]) bytes += held.byteLength;
    for (const step of steps) bytes += step.tableBytes;
    return {
      totalPages: pool.count,
      freePages: pool.free,
      usedPages,
      tokens,
      sequences: sequences.size,
      openSteps: steps.size,
      waste: usedPages === 0 ? 0 : 1 - tokens / (usedPages * layout.pageSize),
      bytes,
    };
  }
  /** Returns the cache to its first state, free pages in ascending order. Throws StateError while a sequence is open, DisposedError. */
  reset(): void {
    requireLive(this.#state, "reset");
    const { sequences, steps, pool } = this.#state;
    if (sequences.size + steps.size > 0) {
      throw new StateError(`[kvcache.reset] ${sequences.size} sequences are open; release them first`, {
        sequences: sequences.size,
      });
    }
    pool.reset();
  }
  /** Cancels open steps, releases every sequence and frees the memory. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#state.disposed) return;
    for (const step of this.#state.steps) step.cancel();
    for (const sequence of this.#state.sequences) closeSequence(sequence);
    const { kPages, vPages, idleTables } = this.#state;
    for (const held of [...kPages, ...vPages, ...idleTables]) held[Symbol.dispose]();
    this.#state.disposed = true;
  }
}
