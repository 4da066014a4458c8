import { BlockPool, NULL_PAGE } from "./block-pool.ts";
import { InvariantError } from "./errors.ts";
import type { GroupState } from "./state.ts";

/**
 * Where the rows of an "int4" group's pages lie: a page in use has a residual page, of floats, until it is encoded, and none from then
 * on. Residual pages have a pool like any others; they are shared, and go, with the page that they belong to.
 */
export class Residuals {
  /** Residual pages 1 .. R, each with one reference while a page has it. */
  readonly pool: BlockPool;
  /**
   * [P]: what tables call each page: itself, or P + r - 1 while its rows lie in residual page r. Pages that nobody refers to are called
   * by themselves, and so is the null page.
   */
  readonly names: Int32Array;
  /** Highest residual page ever in use. */
  touched = 0;
  /** For pages 0 .. P - 1 with R residual pages. Throws OutOfMemoryError. */
  constructor(P: number, R: number) {
    this.pool = new BlockPool(R);
    this.names = Int32Array.from({ length: P }, (_, page) => page);
  }
  /** Whether the page is encoded, or holds nothing. */
  isSealed(page: number): boolean {
    return this.names[page] === page;
  }
  /** The page's residual page, 1 .. R; 0 when it has none. */
  of(page: number): number {
    return this.isSealed(page) ? 0 : this.names[page]! - this.names.length + 1;
  }
  /** Gives a page that is taken anew the next residual page. Throws OutOfMemoryError. */
  take(page: number): void {
    const residual = this.pool.take();
    if (residual > this.touched) this.touched = residual;
    this.names[page] = this.names.length + residual - 1;
  }
  /** The page is encoded or idle: its residual page, if it has one, is free once nobody fences it. */
  release(page: number): void {
    const residual = this.of(page);
    if (residual === 0) return;
    this.names[page] = page;
    this.pool.release(residual);
  }
  /** Undoes {@link take}: its residual page is the next to be taken. */
  restore(page: number): void {
    const residual = this.of(page);
    this.names[page] = page;
    this.pool.restore(residual);
  }
  /** As new. */
  reset(): void {
    this.pool.reset();
    this.names.forEach((_, page) => (this.names[page] = page));
  }
  /**
   * Throws InvariantError unless pages of nobody have no residual page, no two have one, and the pool agrees, with the fences expected,
   * [R + 1].
   */
  check(pages: BlockPool, fences: Int32Array): void {
    const references = new Int32Array(this.pool.count + 1);
    for (let page = 0; page < this.names.length; page++) {
      const name = this.names[page]!;
      if (name === page) continue;
      const residual = name - this.names.length + 1;
      const isHeld = page !== NULL_PAGE && pages.references(page) > 0 && pages.content(page) === 0;
      if (!isHeld || !(residual >= 1 && residual <= this.pool.count))
        this.#wrong(
          `page ${page}, which is idle or published, has residual page ${residual}`,
          page,
          residual,
        );
      if (++references[residual]! > 1)
        this.#wrong(`page ${page} has residual page ${residual}, which another has`, page, residual);
    }
    this.pool.check(references, undefined, fences);
  }
  #wrong(why: string, page: number, residual: number): never {
    throw new InvariantError(`[kvcache.check] ${why}`, { page, residual });
  }
}
/** One reference to a page less; with the last one its residual page goes too. */
export function releasePage({ pool, residuals }: GroupState, page: number): void {
  pool.release(page);
  if (residuals !== undefined && pool.references(page) === 0) residuals.release(page);
}
/** Undoes the taking of a page, and of its residual page if it has one. */
export function restorePage({ pool, residuals }: GroupState, page: number): void {
  pool.restore(page);
  if (residuals !== undefined && !residuals.isSealed(page)) residuals.restore(page);
}
/** What tables call a page. */
export function nameOf({ residuals }: GroupState, page: number): number {
  return residuals === undefined ? page : residuals.names[page]!;
}
