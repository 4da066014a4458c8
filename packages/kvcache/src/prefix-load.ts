import { NULL_PAGE } from "./block-pool.ts";
import { PageFileError } from "./errors.ts";
import { pollFences } from "./fences.ts";
import { openPageFile, type PageFile } from "./page-file.ts";
import type { PageFileHeader } from "./page-format.ts";
import type { TransferOptions } from "./page-file-write.ts";
import type { PrefixIndex } from "./prefix-index.ts";
import type { MatchState } from "./prefix-match.ts";
import type { PrefixOwner } from "./prefix-roots.ts";
import { parsePrefixes, pinPages, type PrefixContent, unpinPages } from "./prefix-save.ts";
import { expirePriorities, requirePrefixes } from "./prefixes.ts";
import { expectedPages, sectionsOf } from "./snapshot.ts";
import { type CacheState, requireLive } from "./state.ts";

/** What became of the blocks of a file. */
export interface LoadedPrefixes {
  /** Blocks that can be found now and could not before. */
  readonly loaded: number;
  /** Blocks that were published already. */
  readonly known: number;
  /** Blocks that are lost because a page of theirs is damaged, or a block before them is missing. */
  readonly damaged: number;
  /** Blocks for which there was no free page, no quota, or nothing before them. */
  readonly skipped: number;
}
/** A block that is put into the index from outside. */
export interface InsertedBlock {
  readonly owner: PrefixOwner;
  /** The node before it, 0 for the root. */
  readonly parent: number;
  readonly ids: Int32Array;
  /** For each place of a node, whether it gets a page. */
  readonly present: readonly boolean[];
  /** The pages that it got, in order. */
  readonly pages: Int32Array;
}
type Fate = "known" | "loaded" | "damaged" | "skipped";
/** A block of the file that is in the index. */
interface Placed {
  readonly node: number;
  readonly serial: number;
}

/** Whether each group has free pages for a block; pages with content are left alone. */
function hasFree(cache: CacheState, present: readonly boolean[]): boolean {
  const { pageStart } = requirePrefixes(cache, "loadPrefixes").nodes;
  return cache.groups.every(
    ({ pool }, g) => present.slice(pageStart[g], pageStart[g + 1]).filter(Boolean).length <= pool.free,
  );
}
/**
 * Puts a block into the index, on free pages, into which `write` then puts the rows; they are pinned by `pin`. Returns its node, 0 where
 * it could not be: no free pages, no quota.
 */
export function insertBlock(
  cache: CacheState,
  pin: MatchState,
  block: Omit<InsertedBlock, "pages">,
  write: (group: number, page: number, nth: number) => void,
): number {
  const { owner, parent, ids, present } = block;
  if (!hasFree(cache, present)) return 0;
  const index = requirePrefixes(cache, "loadPrefixes");
  const pages = takePages(cache, index, present);
  try {
    let nth = 0;
    index.eachPage((g, at) => {
      if (present[at]) write(g, pages[at]!, nth++);
    });
  } catch (error) {
    index.eachPage((g, at) => {
      if (present[at]) cache.groups[g]!.pool.release(pages[at]!);
    });
    throw error;
  }
  const node = index.insert(index.roots.of(owner), parent, ids, 0, pages, {});
  index.eachPage((g, at) => {
    const page = pages[at]!;
    const { pool } = cache.groups[g]!;
    if (page === NULL_PAGE) return;
    if (node !== 0) keep(pin, g, page);
    pool.release(page);
  });
  const taken = pages.filter((page) => page !== NULL_PAGE);
  cache.observer?.({ op: "insert", match: pin, ...block, pages: taken });
  return node;
}
/** A page for each place that gets one; the null page elsewhere. */
function takePages(cache: CacheState, index: PrefixIndex, present: readonly boolean[]): Int32Array {
  const pages = new Int32Array(present.length);
  index.eachPage((g, at) => {
    if (!present[at]) return;
    const group = cache.groups[g]!;
    pages[at] = group.pool.take();
    group.touched = Math.max(group.touched, pages[at]!);
  });
  return pages;
}
/** Pins one page more. */
function keep({ pages, groups }: MatchState, g: number, page: number): void {
  const list = pages[g]!;
  groups[g]!.pool.pin(page);
  list[list.indexOf(NULL_PAGE)] = page;
}
/** Pages of each group in a file of prefixes, which has no residual pages. */
function pagesPerGroup(cache: CacheState, { groups }: PageFileHeader): number[] {
  return sectionsOf(cache).flatMap(({ residual }, s) => (residual ? [] : groups[s]!.pages));
}
/** One loading: where the file's blocks are in the index. */
class Loading {
  readonly #cache: CacheState;
  readonly #file: PageFile;
  readonly #content: PrefixContent;
  readonly #pin: MatchState;
  readonly #placed: (Placed | undefined)[] = [];
  readonly #fates: Fate[] = [];
  readonly #next: number[]; // per group, the file's next page
  constructor(cache: CacheState, file: PageFile, content: PrefixContent, pin: MatchState) {
    this.#cache = cache;
    this.#file = file;
    this.#content = content;
    this.#pin = pin;
    let first = 0;
    const pages = pagesPerGroup(cache, file.header);
    this.#next = pages.map((count) => (first += count) - count);
  }
  /** Takes the next block from the file. */
  async block(i: number): Promise<void> {
    const { parent: before, present } = this.#content.blocks[i]!;
    const numbers = this.#pagesOf(present);
    const above = before < 0 ? { node: 0, serial: 0 } : this.#placed[before];
    const known = above === undefined ? 0 : this.#find(i, above);
    if (known !== 0) return this.#settle(i, "known", known);
    const lost = before < 0 ? undefined : this.#fates[before];
    if (above === undefined) return this.#settle(i, lost === "damaged" ? "damaged" : "skipped", 0);
    if (!hasFree(this.#cache, present)) return this.#settle(i, "skipped", 0);
    let rows: Uint8Array[];
    try {
      rows = await this.#read(numbers);
    } catch (error) {
      if (error instanceof PageFileError && error.reason !== "io") return this.#settle(i, "damaged", 0);
      throw error;
    }
    requireLive(this.#cache, "loadPrefixes");
    const meanwhile = this.#find(i, above);
    if (meanwhile !== 0) return this.#settle(i, "known", meanwhile);
    const node = this.#insert(i, above, rows);
    this.#settle(i, node === 0 ? "skipped" : "loaded", node);
  }
  report(): LoadedPrefixes {
    const count = (fate: Fate): number => this.#fates.filter((f) => f === fate).length;
    return {
      loaded: count("loaded"),
      known: count("known"),
      damaged: count("damaged"),
      skipped: count("skipped"),
    };
  }
  #pagesOf(present: readonly boolean[]): number[] {
    const numbers: number[] = [];
    requirePrefixes(this.#cache, "loadPrefixes").eachPage((g, at) => {
      if (present[at]) numbers.push(this.#next[g]!++);
    });
    return numbers;
  }
  async #read(numbers: readonly number[]): Promise<Uint8Array[]> {
    const rows: Uint8Array[] = [];
    for (const number of numbers) rows.push((await this.#file.read(number)).slice());
    return rows;
  }
  #owner(i: number): PrefixOwner {
    const { namespace, adapter } = this.#content.blocks[i]!;
    return { namespace, adapter: adapter ?? undefined };
  }
  /** The block's node if it is published; 0 else, and when the one before it has gone. */
  #find(i: number, above: Placed): number {
    const index = requirePrefixes(this.#cache, "loadPrefixes");
    if (above.node !== 0 && index.nodes.serial[above.node] !== above.serial) return 0;
    const { ids } = this.#content.blocks[i]!;
    return index.find(index.roots.of(this.#owner(i)), above.node, Int32Array.from(ids), 0);
  }
  #insert(i: number, above: Placed, rows: readonly Uint8Array[]): number {
    const { nodes } = requirePrefixes(this.#cache, "loadPrefixes");
    if (above.node !== 0 && nodes.serial[above.node] !== above.serial) return 0;
    const { ids, present } = this.#content.blocks[i]!;
    const block = { owner: this.#owner(i), parent: above.node, ids: Int32Array.from(ids), present };
    return insertBlock(this.#cache, this.#pin, block, (g, page, nth) =>
      this.#cache.groups[g]!.storage.writePage(page, rows[nth]!),
    );
  }
  #settle(i: number, fate: Fate, node: number): void {
    const { nodes } = requirePrefixes(this.#cache, "loadPrefixes");
    this.#fates[i] = fate;
    this.#placed[i] = node === 0 ? undefined : { node, serial: nodes.serial[node]! };
  }
}
/** Publishes what a file holds, on free pages. See `KvCache.loadPrefixes`. */
export async function loadPrefixes(
  cache: CacheState,
  path: string,
  { signal, onProgress }: TransferOptions,
): Promise<LoadedPrefixes> {
  requirePrefixes(cache, "loadPrefixes");
  await using file = await openPageFile(path, expectedPages(cache));
  requireLive(cache, "loadPrefixes");
  const content = parsePrefixes(cache, file.header, path);
  const room = pagesPerGroup(cache, file.header).map(
    (pages, g) => new Int32Array(Math.min(pages, cache.groups[g]!.pool.count)),
  );
  const pin = pinPages(cache, room, "loadPrefixes");
  pollFences(cache);
  expirePriorities(cache);
  const loading = new Loading(cache, file, content, pin);
  try {
    for (let i = 0; i < content.blocks.length; i++) {
      signal?.throwIfAborted();
      await loading.block(i);
      onProgress?.(i + 1, content.blocks.length);
    }
  } finally {
    unpinPages(cache, pin);
  }
  return loading.report();
}
