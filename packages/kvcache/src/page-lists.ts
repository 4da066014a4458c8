const NOWHERE = -1; // in #next of a page that is in no list

/**
 * Doubly linked lists of the pages 1 .. count, in two int32 arrays: a page is in one list or in none, and leaves from the middle without
 * a search. Each list has a sentinel behind the pages, which closes it to a ring. Answers of 0 mean the end.
 */
export class PageLists {
  readonly #count: number;
  readonly #next: Int32Array; // [count + 1 + lists]
  readonly #previous: Int32Array; // [count + 1 + lists]
  /** Empty lists. Throws RangeError when there is no memory for them. */
  constructor(count: number, lists: number) {
    this.#count = count;
    this.#next = new Int32Array(count + 1 + lists);
    this.#previous = new Int32Array(count + 1 + lists);
    this.clear();
  }
  /** Empties every list. */
  clear(): void {
    this.#next.fill(NOWHERE);
    for (let at = this.#count + 1; at < this.#next.length; at++) this.#next[at] = this.#previous[at] = at;
  }
  /** Whether the page is in a list. */
  has(page: number): boolean {
    return (this.#next[page] ?? NOWHERE) !== NOWHERE;
  }
  first(list: number): number {
    const page = this.#next[this.#count + 1 + list]!;
    return page > this.#count ? 0 : page;
  }
  last(list: number): number {
    const page = this.#previous[this.#count + 1 + list]!;
    return page > this.#count ? 0 : page;
  }
  after(page: number): number {
    const next = this.#next[page]!;
    return next > this.#count ? 0 : next;
  }
  before(page: number): number {
    const previous = this.#previous[page]!;
    return previous > this.#count ? 0 : previous;
  }
  /** Puts a page that is in no list at the end of one. */
  append(list: number, page: number): void {
    const sentinel = this.#count + 1 + list;
    this.#between(this.#previous[sentinel]!, page, sentinel);
  }
  /** Puts a page that is in no list at the beginning of one. */
  prepend(list: number, page: number): void {
    const sentinel = this.#count + 1 + list;
    this.#between(sentinel, page, this.#next[sentinel]!);
  }
  /** Puts a page that is in no list behind one that is in a list. */
  insertAfter(place: number, page: number): void {
    this.#between(place, page, this.#next[place]!);
  }
  /** Takes a page out of its list. */
  remove(page: number): void {
    const next = this.#next[page]!;
    const previous = this.#previous[page]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#next[page] = NOWHERE;
  }
  /** The first page of a list whose links do not agree with its neighbour's, or that names no page; 0 when all is well. */
  brokenAt(list: number): number {
    const sentinel = this.#count + 1 + list;
    let before = sentinel;
    for (
      let page = this.#next[sentinel]!, seen = 0;
      page !== sentinel;
      before = page, page = this.#next[page]!
    ) {
      if (!(page > 0 && page <= this.#count) || this.#previous[page] !== before || ++seen > this.#count)
        return page;
    }
    return this.#previous[sentinel] === before ? 0 : before;
  }
  #between(before: number, page: number, after: number): void {
    this.#next[before] = page;
    this.#previous[page] = before;
    this.#next[page] = after;
    this.#previous[after] = page;
  }
}
