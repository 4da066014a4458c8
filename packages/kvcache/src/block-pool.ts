import { ArgumentError, OutOfMemoryError } from "@heed/tensor";
import { InvariantError } from "./errors.ts";
import { ExpiryHeap } from "./expiry-heap.ts";
import { PageLists } from "./page-lists.ts";

/** The page that no sequence owns. Tables name it where a sequence has no page; it is never handed out. */
export const NULL_PAGE = 0;
/** Priorities of content are whole numbers from 0 (evicted first) to this. */
export const MAX_PRIORITY = 100;
/** Priority of content for which none is given, and of content whose priority has expired. */
export const DEFAULT_PRIORITY = 50;
const FREE = 0; // list of free pages
const CACHED = 1; // list of cached pages of priority 0; those of priority p follow at CACHED + p

/** How long content should stay. */
export interface Retention {
  /** 0 .. 100, default 50: content of lower priority is evicted first. */
  readonly priority?: number | undefined;
  /** Time on the cache's clock, in milliseconds, from which on the priority counts as 50; default never. */
  readonly expires?: number | undefined;
}
/** Told of a page with content that is handed out again: the content is gone. */
export type OnEvict = (page: number, label: number) => void;

/**
 * The pages 1 .. count of one group. A page is idle when no sequence refers to it, and then exactly one of: free (holds nothing), cached
 * (has content: can be found again), pinned, or in flight (fenced). Free pages are handed out first, the one that has been free the
 * longest; then cached ones, by lowest priority and least recent use, so that the same calls give the same pages.
 */
export class BlockPool {
  readonly count: number;
  /** Called when a page with content is handed out again; set by whoever labels pages. */
  onEvict: OnEvict | undefined;
  readonly #lists: PageLists;
  readonly #references: Int32Array; // [count + 1]
  readonly #pins: Int32Array; // [count + 1]
  readonly #fences: Int32Array; // [count + 1]
  readonly #labels: Int32Array; // [count + 1]: content, 0 for none
  readonly #priorities: Uint8Array; // [count + 1]
  readonly #lastUse: Float64Array; // [count + 1]: of cached pages, rising within a list
  readonly #expiring: ExpiryHeap;
  #free = 0;
  #cached = 0;
  #uses = 0;
  #lowest = 0; // no cached page has a lower priority
  /** A pool with every page free, in ascending order. Throws OutOfMemoryError. */
  constructor(count: number) {
    this.count = count;
    try {
      this.#lists = new PageLists(count, CACHED + MAX_PRIORITY + 1);
      this.#references = new Int32Array(count + 1);
      this.#pins = new Int32Array(count + 1);
      this.#fences = new Int32Array(count + 1);
      this.#labels = new Int32Array(count + 1);
      this.#priorities = new Uint8Array(count + 1);
      this.#lastUse = new Float64Array(count + 1);
      this.#expiring = new ExpiryHeap(count);
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
  /** Number of idle pages with content, neither pinned nor fenced. */
  get cached(): number {
    return this.#cached;
  }
  /** Number of pages that can be taken. */
  get available(): number {
    return this.#free + this.#cached;
  }
  /** Number of references to a page; 0 when it is idle. */
  references(page: number): number {
    return this.#references[page] ?? 0;
  }
  /** Number of pins on a page. */
  pins(page: number): number {
    return this.#pins[page] ?? 0;
  }
  /** Number of fences on a page. */
  fences(page: number): number {
    return this.#fences[page] ?? 0;
  }
  /** Label of a page's content; 0 for none. */
  content(page: number): number {
    return this.#labels[page] ?? 0;
  }
  /** Priority of a page's content, as of the last {@link expire}. */
  priority(page: number): number {
    return this.#priorities[page] ?? DEFAULT_PRIORITY;
  }
  /**
   * Takes the page that has been free the longest, else the cached page that is evicted first, with one reference. Throws
   * OutOfMemoryError when there is neither.
   */
  take(): number {
    const free = this.#lists.first(FREE);
    if (free !== 0) {
      this.#lists.remove(free);
      this.#free--;
      this.#references[free] = 1;
      return free;
    }
    const page = this.#firstCached();
    if (page === 0) {
      throw new OutOfMemoryError(
        `[kvcache] all ${this.count} pages are in use; release or truncate a sequence`,
        { total: this.count, free: 0 },
      );
    }
    this.claim(page);
    return page;
  }
  /** Takes this page, which {@link peek} named, with one reference; its content goes. Throws InvariantError unless it is free or cached. */
  claim(page: number): void {
    if (!(page > 0 && page <= this.count && this.#lists.has(page))) this.#notHeld(page, "claim");
    this.#lists.remove(page);
    this.#references[page] = 1;
    const label = this.#labels[page]!;
    if (label === 0) {
      this.#free--;
      return;
    }
    this.#cached--;
    this.#forget(page);
    this.onEvict?.(page, label);
  }
  /** The first n pages in the order in which they would be handed out now, or all when there are fewer. */
  peek(n: number): Int32Array {
    const pages = new Int32Array(Math.min(n, this.available));
    let at = 0;
    for (let page = this.#lists.first(FREE); at < pages.length && page !== 0; page = this.#lists.after(page))
      pages[at++] = page;
    for (let p = this.#lowest; at < pages.length; p++) {
      const list = CACHED + p;
      for (
        let page = this.#lists.first(list);
        at < pages.length && page !== 0;
        page = this.#lists.after(page)
      )
        pages[at++] = page;
    }
    return pages;
  }
  /** One more reference to a page that somebody holds, or that has content. Throws InvariantError for any other. */
  retain(page: number): void {
    this.#keep(page, "retain");
    this.#references[page]!++;
  }
  /** One reference less; the last one makes the page idle, as the youngest of its list. Throws InvariantError for an idle page. */
  release(page: number): void {
    this.#requireUsed(page, "release");
    if (--this.#references[page]! === 0) this.#settle(page);
  }
  /** Undoes {@link take}: drops the only reference and makes the page the next to be taken. Throws InvariantError. */
  restore(page: number): void {
    this.#requireUsed(page, "restore");
    if (this.#references[page] !== 1) {
      throw new InvariantError(
        `[kvcache] page ${page} cannot be restored: it has ${this.#references[page]} references`,
        { page, references: this.#references[page] },
      );
    }
    this.#references[page] = 0;
    if ((this.#pins[page]! | this.#fences[page]! | this.#labels[page]!) !== 0) return this.#settle(page);
    this.#lists.prepend(FREE, page);
    this.#free++;
  }
  /** The page is not handed out before {@link unpin}, even when idle. Throws InvariantError unless somebody holds it or it has content. */
  pin(page: number): void {
    this.#keep(page, "pin");
    this.#pins[page]!++;
  }
  /** One pin less; the last one on an idle page lets it go. Throws InvariantError when there is none. */
  unpin(page: number): void {
    if (!(this.pins(page) > 0)) this.#notHeld(page, "unpin");
    if (--this.#pins[page]! === 0) this.#settle(page);
  }
  /** The page that work under way reads is not handed out before {@link unfence}. Throws InvariantError for an idle page. */
  fence(page: number): void {
    this.#requireUsed(page, "fence");
    this.#fences[page]!++;
  }
  /** One fence less; the last one on an idle page lets it go. Throws InvariantError when there is none. */
  unfence(page: number): void {
    if (!(this.fences(page) > 0)) this.#notHeld(page, "unfence");
    if (--this.#fences[page]! === 0) this.#settle(page);
  }
  /**
   * Says that a page in use holds content that can be found again by `label`, a whole number above 0. Throws InvariantError for an idle
   * page, or one that has content.
   */
  setContent(page: number, label: number, retention: Retention = {}): void {
    this.#requireUsed(page, "setContent");
    const { priority = DEFAULT_PRIORITY, expires = Infinity } = retention;
    if (this.#labels[page] !== 0 || !(label > 0)) {
      throw new InvariantError(
        `[kvcache] page ${page} has content ${this.#labels[page]} and cannot get ${label}`,
        { page, content: this.#labels[page], label },
      );
    }
    this.#labels[page] = label;
    this.#priorities[page] = priority;
    if (expires !== Infinity) this.#expiring.add(page, expires);
  }
  /** Says that a page's content cannot be found any more; a cached page becomes free, as the youngest. Nothing for a page without. */
  clearContent(page: number): void {
    if (this.content(page) === 0) return;
    this.#forget(page);
    if (!this.#lists.has(page)) return;
    this.#lists.remove(page);
    this.#cached--;
    this.#lists.append(FREE, page);
    this.#free++;
  }
  /**
   * Priorities that expire at `now` or before count as {@link DEFAULT_PRIORITY} from here on, in the place of their last use. Returns
   * whether there were any.
   */
  expire(now: number): boolean {
    let some = false;
    for (let page = this.#expiring.takeUntil(now); page !== 0; page = this.#expiring.takeUntil(now)) {
      some = true;
      this.#priorities[page] = DEFAULT_PRIORITY;
      if (!this.#lists.has(page)) continue;
      this.#lists.remove(page);
      this.#insertByUse(page);
    }
    return some;
  }
  /** Frees every page and puts the list in ascending order, as in a new pool; {@link OnEvict} is not called. */
  reset(): void {
    this.#lists.clear();
    for (const books of [this.#references, this.#pins, this.#fences, this.#labels]) books.fill(0);
    this.#priorities.fill(DEFAULT_PRIORITY);
    this.#expiring.clear();
    for (let page = 1; page <= this.count; page++) this.#lists.append(FREE, page);
    this.#free = this.count;
    this.#cached = 0;
    this.#lowest = MAX_PRIORITY;
  }
  /** The free pages in the order in which they will be taken. */
  freePages(): Int32Array {
    return this.peek(this.#free);
  }
  /** The cached pages in the order in which they will be evicted. */
  cachedPages(): Int32Array {
    return this.peek(this.available).subarray(this.#free);
  }
  /**
   * Walks the pool in O(count): each list closes on itself both ways, a page is in one exactly when it is free or cached, in the order
   * of use, and references, pins and fences equal those expected, [count + 1] each. Throws InvariantError on the first that fails.
   */
  check(references: Int32Array, pins?: Int32Array, fences?: Int32Array): void {
    for (let list = 0; list <= CACHED + MAX_PRIORITY; list++) {
      const page = this.#lists.brokenAt(list);
      if (page !== 0) this.#wrong(`list ${list} is broken at page ${page}`, { list, page });
    }
    let [free, cached] = [0, 0];
    for (let list = 0; list <= CACHED + MAX_PRIORITY; list++) {
      const listed = this.#checkList(list);
      if (list === FREE) free += listed;
      else cached += listed;
    }
    if (free !== this.#free || cached !== this.#cached) {
      this.#wrong(
        `${this.#free} pages count as free and ${this.#cached} as cached, but the lists hold ${free} and ${cached}`,
        {
          free: this.#free,
          cached: this.#cached,
          listed: [free, cached],
        },
      );
    }
    this.#checkCounts(references, pins, fences);
  }
  /** Checks that the pages of a list belong there, in this order; returns how many they are. */
  #checkList(list: number): number {
    let listed = 0;
    for (let page = this.#lists.first(list), use = 0; page !== 0; page = this.#lists.after(page)) {
      listed++;
      const place = this.#labels[page] === 0 ? FREE : CACHED + this.#priorities[page]!;
      if (place !== list)
        this.#wrong(`page ${page} is in list ${list}, but belongs in ${place}`, { page, list, place });
      if (list === FREE) continue;
      const last = this.#lastUse[page]!;
      if (last <= use || list - CACHED < this.#lowest)
        this.#wrong(`page ${page} is out of order in list ${list}`, { page, list });
      use = last;
    }
    return listed;
  }
  #checkCounts(references: Int32Array, pins?: Int32Array, fences?: Int32Array): void {
    for (let page = 0; page <= this.count; page++) {
      this.#compare(page, "references", this.#references[page]!, references[page]!);
      this.#compare(page, "pins", this.#pins[page]!, pins?.[page] ?? 0);
      this.#compare(page, "fences", this.#fences[page]!, fences?.[page] ?? 0);
      if (this.#lists.has(page) !== (page !== NULL_PAGE && this.#isLoose(page)))
        this.#wrong(`page ${page} is ${this.#lists.has(page) ? "" : "not "}in a list`, { page });
      if (this.#expiring.has(page) && this.#labels[page] === 0)
        this.#wrong(`the priority of page ${page} expires, but it has no content`, { page });
    }
  }
  #compare(page: number, what: string, found: number, expected: number): void {
    if (found !== expected)
      this.#wrong(`page ${page} has ${found} ${what}, but ${expected} are known`, {
        page,
        [what]: found,
        expected,
      });
  }
  #wrong(why: string, details: Record<string, unknown>): never {
    throw new InvariantError(`[kvcache] ${why}`, details);
  }
  /** Whether nobody holds, pins or fences the page. */
  #isLoose(page: number): boolean {
    return (this.#references[page]! | this.#pins[page]! | this.#fences[page]!) === 0;
  }
  /** Puts a page into its list, if nobody has it any more. */
  #settle(page: number): void {
    if (!this.#isLoose(page)) return;
    if (this.#labels[page] === 0) {
      this.#lists.append(FREE, page);
      this.#free++;
      return;
    }
    const priority = this.#priorities[page]!;
    this.#lastUse[page] = ++this.#uses;
    this.#lists.append(CACHED + priority, page);
    this.#cached++;
    if (priority < this.#lowest) this.#lowest = priority;
  }
  /** Puts a page whose priority has become the default one among those used before and after it. */
  #insertByUse(page: number): void {
    const list = CACHED + DEFAULT_PRIORITY;
    let place = this.#lists.last(list);
    while (place !== 0 && this.#lastUse[place]! > this.#lastUse[page]!) place = this.#lists.before(place);
    if (place === 0) this.#lists.prepend(list, page);
    else this.#lists.insertAfter(place, page);
    if (DEFAULT_PRIORITY < this.#lowest) this.#lowest = DEFAULT_PRIORITY;
  }
  #firstCached(): number {
    if (this.#cached === 0) return 0;
    let page = this.#lists.first(CACHED + this.#lowest);
    while (page === 0) page = this.#lists.first(CACHED + ++this.#lowest);
    return page;
  }
  #forget(page: number): void {
    this.#labels[page] = 0;
    this.#priorities[page] = DEFAULT_PRIORITY;
    this.#expiring.remove(page);
  }
  /** Takes a page that somebody is about to hold or pin out of its list. */
  #keep(page: number, what: string): void {
    if (!(page > 0 && page <= this.count)) this.#notHeld(page, what);
    if ((this.#references[page]! | this.#pins[page]! | this.#labels[page]!) === 0) this.#notHeld(page, what);
    if (!this.#lists.has(page)) return;
    this.#lists.remove(page);
    this.#cached--;
  }
  #requireUsed(page: number, what: string): void {
    if (page > 0 && page <= this.count && this.#references[page]! > 0) return;
    this.#notHeld(page, what);
  }
  #notHeld(page: number, what: string): never {
    throw new InvariantError(
      `[kvcache] ${what} of page ${page}, which nobody holds (pages are 1..${this.count})`,
      { page, total: this.count },
    );
  }
}
/** Throws ArgumentError unless the priority is a whole number from 0 to 100 and the time of its end a number. */
export function requireRetention({ priority = DEFAULT_PRIORITY, expires = Infinity }: Retention): void {
  if (Number.isInteger(priority) && priority >= 0 && priority <= MAX_PRIORITY && expires >= -Infinity) return;
  throw new ArgumentError(
    `[kvcache] a priority is a whole number from 0 to ${MAX_PRIORITY}, and expires a time in milliseconds; got ${priority}, ${expires}`,
    { priority, expires },
  );
}
