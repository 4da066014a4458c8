import { OutOfMemoryError } from "@heed/tensor";
import { InvariantError } from "./errors.ts";

/** The page that no sequence owns. Tables name it where a sequence has no page; it is never handed out. */
export const NULL_PAGE = 0;
const IN_USE = -1; // in #next and #previous of a page that is not in the free list

/**
 * The pages 1 .. count of one group: reference counts, and a free list that hands out the page that has been free the longest, so
 * that the same calls give the same pages. The list is doubly linked through two int32 arrays (a free page can leave from the middle
 * without a search) and page 0, {@link NULL_PAGE}, is its sentinel: the head is next[0], the tail previous[0].
 */
export class BlockPool {
  readonly count: number;
  readonly #next: Int32Array; // [count + 1]
  readonly #previous: Int32Array; // [count + 1]
  readonly #references: Int32Array; // [count + 1]
  #free = 0;
  /** A pool with every page free, in ascending order. Throws OutOfMemoryError. */
  constructor(count: number) {
    this.count = count;
    try {
      this.#next = new Int32Array(count + 1);
      this.#previous = new Int32Array(count + 1);
      this.#references = new Int32Array(count + 1);
    } catch {
      throw new OutOfMemoryError(`[kvcache] no memory for the books of ${count} pages; use larger pages`, {
        count,
      });
    }
    this.reset();
  }
  /** Number of free pages. */
  get free(): number {
    return this.#free;
  }
  /** Number of references to a page; 0 when it is free. */
  references(page: number): number {
    return this.#references[page] ?? 0;
  }
  /** Takes the page that has been free the longest, with one reference. Throws OutOfMemoryError when none is free. */
  take(): number {
    const page = this.#next[NULL_PAGE]!;
    if (page === NULL_PAGE) {
      throw new OutOfMemoryError(
        `[kvcache] all ${this.count} pages are in use; release or truncate a sequence`,
        {
          total: this.count,
          free: 0,
        },
      );
    }
    this.#unlink(page);
    this.#references[page] = 1;
    return page;
  }
  /** One more reference to a page in use. Throws InvariantError for a free page or one that does not exist. */
  retain(page: number): void {
    this.#requireUsed(page, "retain");
    this.#references[page]!++;
  }
  /** One reference less; the last one frees the page, as the youngest of the list. Throws InvariantError for a free page. */
  release(page: number): void {
    this.#requireUsed(page, "release");
    if (--this.#references[page]! === 0) this.#link(page, this.#previous[NULL_PAGE]!);
  }
  /** Undoes {@link take}: drops the only reference and makes the page the next to be taken. Throws InvariantError. */
  restore(page: number): void {
    this.#requireUsed(page, "restore");
    if (this.#references[page] !== 1) {
      throw new InvariantError(
        `[kvcache] page ${page} cannot be restored: it has ${this.#references[page]} references`,
        {
          page,
          references: this.#references[page],
        },
      );
    }
    this.#references[page] = 0;
    this.#link(page, NULL_PAGE);
  }
  /** Frees every page and puts the list in ascending order, as in a new pool. */
  reset(): void {
    const pages = this.count + 1;
    for (let page = 0; page < pages; page++) {
      this.#next[page] = (page + 1) % pages;
      this.#previous[page] = (page + pages - 1) % pages;
    }
    this.#references.fill(0);
    this.#free = this.count;
  }
  /** The free pages in the order in which they will be taken. */
  freePages(): Int32Array {
    const pages = new Int32Array(this.#free);
    for (let i = 0, page = this.#next[NULL_PAGE]!; i < pages.length; i++, page = this.#next[page]!)
      pages[i] = page;
    return pages;
  }
  /**
   * Walks the pool in O(count): the list closes on itself both ways, names each free page once, and a page is in it exactly when
   * nothing refers to it; references equal `expected` [count + 1]. Throws InvariantError on the first that fails.
   */
  check(expected: Int32Array): void {
    let listed = 0;
    let before = NULL_PAGE;
    for (let page = this.#next[NULL_PAGE]!; page !== NULL_PAGE; before = page, page = this.#next[page]!) {
      if (!(page > 0 && page <= this.count) || this.#previous[page] !== before || ++listed > this.count) {
        throw new InvariantError(`[kvcache] the free list is broken at page ${page}, after ${before}`, {
          page,
          before,
          listed,
        });
      }
      if (this.#references[page] !== 0) this.#wrongReferences(page, 0);
    }
    if (this.#previous[NULL_PAGE] !== before || listed !== this.#free) {
      throw new InvariantError(
        `[kvcache] ${this.#free} pages count as free, but the free list holds ${listed}`,
        { free: this.#free, listed },
      );
    }
    let used = 0;
    for (let page = 1; page <= this.count; page++) {
      if (this.#references[page] !== expected[page]) this.#wrongReferences(page, expected[page]!);
      if (this.#references[page]! > 0) used++;
    }
    if (this.#references[NULL_PAGE] !== 0) this.#wrongReferences(NULL_PAGE, 0);
    if (used + listed !== this.count) {
      throw new InvariantError(
        `[kvcache] ${used} pages in use and ${listed} free do not make ${this.count}`,
        { used, listed, total: this.count },
      );
    }
  }
  #requireUsed(page: number, what: string): void {
    if (page > 0 && page <= this.count && this.#references[page]! > 0) return;
    throw new InvariantError(
      `[kvcache] ${what} of page ${page}, which nobody holds (pages are 1..${this.count})`,
      { page, total: this.count },
    );
  }
  #wrongReferences(page: number, expected: number): never {
    const references = this.#references[page];
    throw new InvariantError(
      `[kvcache] page ${page} has ${references} references, but ${expected} are known`,
      { page, references, expected },
    );
  }
  #link(page: number, after: number): void {
    const before = this.#next[after]!;
    this.#next[after] = page;
    this.#previous[page] = after;
    this.#next[page] = before;
    this.#previous[before] = page;
    this.#free++;
  }
  #unlink(page: number): void {
    const next = this.#next[page]!;
    const previous = this.#previous[page]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#next[page] = IN_USE;
    this.#previous[page] = IN_USE;
    this.#free--;
  }
}
