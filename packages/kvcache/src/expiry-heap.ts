/** Pages by the time at which something of theirs ends: a binary heap that knows where each page stands in it. */
export class ExpiryHeap {
  readonly #times: Float64Array; // [count + 1]
  readonly #place: Int32Array; // [count + 1]: index in #heap + 1, 0 for a page that is not in it
  readonly #heap: number[] = [];
  /** An empty heap for the pages 1 .. count. Throws RangeError when there is no memory for it. */
  constructor(count: number) {
    this.#times = new Float64Array(count + 1);
    this.#place = new Int32Array(count + 1);
  }
  /** Number of pages in it. */
  get size(): number {
    return this.#heap.length;
  }
  has(page: number): boolean {
    return this.#place[page] !== 0;
  }
  /** The time of a page that is in the heap, Infinity for any other. */
  time(page: number): number {
    return this.has(page) ? this.#times[page]! : Infinity;
  }
  /** Adds a page that is not in it. */
  add(page: number, time: number): void {
    this.#times[page] = time;
    this.#up(this.#heap.length, page);
  }
  /** Takes a page out, if it is there. */
  remove(page: number): void {
    const at = this.#place[page]! - 1;
    if (at < 0) return;
    this.#place[page] = 0;
    const last = this.#heap.pop()!;
    if (last === page) return;
    if (at > 0 && this.#earlier(last, this.#heap[(at - 1) >> 1]!)) this.#up(at, last);
    else this.#down(at, last);
  }
  /** Takes out the page that ends first, if that is at `now` or before; 0 else. Equal times go by page number. */
  takeUntil(now: number): number {
    const page = this.#heap[0];
    if (page === undefined || this.#times[page]! > now) return 0;
    this.remove(page);
    return page;
  }
  clear(): void {
    this.#heap.length = 0;
    this.#place.fill(0);
  }
  #earlier(a: number, b: number): boolean {
    const d = this.#times[a]! - this.#times[b]!;
    return d < 0 || (d === 0 && a < b);
  }
  #put(at: number, page: number): void {
    this.#heap[at] = page;
    this.#place[page] = at + 1;
  }
  #up(start: number, page: number): void {
    let at = start;
    while (at > 0) {
      const above = this.#heap[(at - 1) >> 1]!;
      if (!this.#earlier(page, above)) break;
      this.#put(at, above);
      at = (at - 1) >> 1;
    }
    this.#put(at, page);
  }
  #down(start: number, page: number): void {
    let at = start;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#heap.length) break;
      if (child + 1 < this.#heap.length && this.#earlier(this.#heap[child + 1]!, this.#heap[child]!)) child++;
      if (!this.#earlier(this.#heap[child]!, page)) break;
      this.#put(at, this.#heap[child]!);
      at = child;
    }
    this.#put(at, page);
  }
}
