import { ArgumentError, DisposedError, type Engine, OutOfMemoryError } from "@heed/tensor";
import { TableMemory } from "./block-table.ts";
import { StateError } from "./errors.ts";
import { requireWhole } from "./state.ts";
import type { StepEntry } from "./step-pages.ts";

/** What the steps of a {@link FixedTable} have in common. */
export interface FixedTableOptions {
  /** Sequences of every step, N. */
  readonly sequences: number;
  /** New tokens of every step, T; default one for each sequence. */
  readonly tokens?: number | undefined;
  /**
   * Most pages that the sequences of a step list together in any group, a shared page once for each; default the pages of the largest
   * group.
   */
  readonly pages?: number | undefined;
}
let memoryOfTable: (table: FixedTable) => TableMemory;

/**
 * A page table at one place in memory for steps of one shape, one after the other. A tape that was recorded over such a step can be
 * replayed over the next, which finds its positions, slots, lengths and pages where the recorded calls read them. Made by
 * `cache.fixedTable()`; its owner disposes it.
 */
export class FixedTable {
  readonly sequences: number;
  readonly tokens: number;
  readonly pages: number;
  readonly #memory: TableMemory;
  #disposed = false;
  static {
    memoryOfTable = (table) => table.#claim();
  }
  /** For the cache; users call `cache.fixedTable()`. */
  constructor(engine: Engine, totalPages: number, options: FixedTableOptions) {
    const { sequences, tokens = sequences, pages = totalPages } = options;
    requireWhole(sequences, 1, 2 ** 31 - 1, "sequences of a fixed table");
    requireWhole(tokens, 1, 2 ** 31 - 1, "tokens of a fixed table");
    requireWhole(pages, 1, 2 ** 31 - 1, "pages of a fixed table");
    this.sequences = sequences;
    this.tokens = tokens;
    this.pages = pages;
    this.#memory = new TableMemory(engine, pages);
  }
  #claim(): TableMemory {
    if (this.#disposed)
      throw new DisposedError("[kvcache.reserve] this table was disposed; make another one");
    if (this.#memory.inUse)
      throw new StateError("[kvcache.reserve] an open step uses this table; commit or cancel that first", {
        sequences: this.sequences,
      });
    return this.#memory;
  }
  /** Frees the memory; tapes and open steps over it keep it until they end. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#memory[Symbol.dispose]();
  }
}
/**
 * The memory of a table for a step of these entries, which list at most `pages` pages in a group. Throws ArgumentError when the step has another
 * shape, OutOfMemoryError when it has more pages, StateError, DisposedError.
 */
export function claimFixed(table: FixedTable, entries: readonly StepEntry[], pages: number): TableMemory {
  const tokens = entries.reduce((sum, e) => sum + e.tokens, 0);
  if (entries.length !== table.sequences || tokens !== table.tokens) {
    throw new ArgumentError(
      `[kvcache.reserve] the table is for ${table.sequences} sequences with ${table.tokens} new tokens; got ${entries.length} with ${tokens}`,
      { sequences: entries.length, tokens },
    );
  }
  if (pages > table.pages) {
    throw new OutOfMemoryError(
      `[kvcache.reserve] the step has ${pages} pages, but the table holds ${table.pages}; make a larger one and record again`,
      { pages, capacity: table.pages },
    );
  }
  return memoryOfTable(table);
}
