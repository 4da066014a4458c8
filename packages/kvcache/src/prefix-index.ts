import { DEFAULT_PRIORITY, MAX_PRIORITY, NULL_PAGE, type Retention } from "./block-pool.ts";
import { EventLog } from "./events.ts";
import { Namespaces, type QuotaOptions } from "./namespaces.ts";
import { type MatchState, openMatch, type PrefixMatch } from "./prefix-match.ts";
import { PrefixNodes } from "./prefix-nodes.ts";
import { type PrefixOwner, type PrefixRoot, PrefixRoots } from "./prefix-roots.ts";
import { findPrefix, pagesOnPath, type PrefixGroup } from "./prefix-search.ts";

/** How a cache keeps prefixes. */
export interface PrefixOptions extends QuotaOptions {
  /** Name of the model, part of every key. */
  readonly model?: string | undefined;
  /** Events that `events()` can look back on; default 4096. */
  readonly events?: number | undefined;
  /** Bits of the index's hash, 0 to 32: fewer collide more, which changes no answer. For tests. */
  readonly hashBits?: number | undefined;
}
/** Where a sequence stands in its tree: the node of its last block that is published, by it or by another one. */
export interface PrefixCursor {
  root: PrefixRoot;
  node: number; // 0 at the root
  serial: number;
  blocks: number;
  readonly retention: Retention;
}
/** A published block. */
export interface PrefixEntry {
  readonly key: string;
  readonly parent: string;
  readonly tokens: readonly number[];
  readonly namespace: string;
  readonly adapter: string | undefined;
}
/** What the index counts. */
export interface PrefixStats {
  /** Blocks published now. */
  readonly blocks: number;
  /** Full blocks that matches found, since the start. */
  readonly hitBlocks: number;
  /** Full blocks that matches looked for and did not find. */
  readonly missedBlocks: number;
  /** Tokens that matches found in a block in part. */
  readonly partialTokens: number;
  /** Pages with content that were handed out again. */
  readonly evictedPages: number;
  /** Blocks that were not published for want of quota. */
  readonly refusedBlocks: number;
}
/** A sequence's pages in one group by position. */
export interface PagesByPosition {
  readonly ids: Int32Array;
  readonly count: number;
}
const hex = (key: Uint8Array): string => Buffer.from(key).toString("hex");

/** Which blocks of tokens are on which pages: a tree of blocks for each owner, and the pages' content labels in the groups' pools. */
export class PrefixIndex {
  readonly options: PrefixOptions;
  readonly events: EventLog;
  readonly nodes: PrefixNodes;
  /** Matches neither used nor dropped. */
  readonly open: Set<MatchState> = new Set();
  readonly groups: readonly PrefixGroup[];
  readonly namespaces: Namespaces;
  readonly roots: PrefixRoots;
  readonly #margin: number;
  readonly #isPlain: boolean; // no group has pages that are encoded as a whole
  readonly #counts = { hitBlocks: 0, missedBlocks: 0, partialTokens: 0, evictedPages: 0, refusedBlocks: 0 };
  readonly #block: Int32Array; // pages of the block that is being published
  constructor(
    groups: readonly PrefixGroup[],
    blockTokens: number,
    margin: number,
    options: PrefixOptions = {},
  ) {
    const perBlock = groups.map(({ layout }) => blockTokens / layout.pageSize);
    this.nodes = new PrefixNodes(blockTokens, perBlock, options.hashBits);
    this.options = options;
    this.events = new EventLog(options.events ?? 4096);
    this.groups = groups;
    this.#margin = margin;
    this.#isPlain = groups.every(({ residuals }) => residuals === undefined);
    const identity = JSON.stringify([options.model ?? null, blockTokens, groups.map(({ layout }) => layout)]);
    this.roots = new PrefixRoots(this.nodes, identity);
    this.namespaces = new Namespaces(options);
    this.#block = new Int32Array(this.nodes.pagesPerNode);
    groups.forEach(({ pool }, g) => (pool.onEvict = (page, label) => this.#evicted(g, page, label)));
  }
  get stats(): PrefixStats {
    return { blocks: this.nodes.count, ...this.#counts };
  }
  /** A cursor at the root, for a new sequence. */
  cursor(owner: PrefixOwner, retention: Retention): PrefixCursor {
    return { root: this.roots.of(owner), node: 0, serial: 0, blocks: 0, retention };
  }
  /** The longest published prefix of the ids, at most all but one; its pages are pinned. Keeps the array. See {@link findPrefix}. */
  match(
    ids: Int32Array,
    owner: PrefixOwner,
    partial: boolean,
    dropped?: (match: MatchState) => void,
  ): PrefixMatch {
    const root = this.roots.of(owner);
    const { nodes } = this;
    const none = { path: [], blocks: 0, length: 0 };
    const found =
      root.node === 0
        ? none
        : findPrefix(nodes, this.groups, this.#margin, root.node, ids, partial && this.#isPlain);
    const { path, blocks, length } = found;
    const most = Math.max(0, Math.floor((ids.length - 1) / nodes.blockTokens));
    this.#counts.hitBlocks += blocks;
    this.#counts.missedBlocks += most - blocks;
    this.#counts.partialTokens += length - blocks * nodes.blockTokens;
    this.namespaces.touch(root.namespace, path.at(-1) ?? 0, nodes.parent, nodes.depth);
    const node = blocks === 0 ? 0 : path[blocks - 1]!;
    const state: MatchState = {
      root,
      node,
      serial: node === 0 ? 0 : nodes.serial[node]!,
      blocks,
      ids: ids.subarray(0, length),
      pages: this.groups.map((group, g) => pagesOnPath(nodes, group, g, this.#margin, found)),
      groups: this.groups,
      dropped: dropped && (() => dropped(state)),
      open: this.open,
    };
    return openMatch(state);
  }
  /**
   * Publishes the full blocks of a sequence that are not published yet, up to one of which a page waits to be encoded. The first that holds a
   * block keeps it; others' pages stay theirs.
   */
  publish(cursor: PrefixCursor, ids: Int32Array, length: number, lists: readonly PagesByPosition[]): void {
    const { nodes } = this;
    if ((cursor.blocks + 1) * nodes.blockTokens > length || !this.roots.isCurrent(cursor.root)) return;
    this.#revive(cursor);
    const before = cursor.blocks;
    for (; (cursor.blocks + 1) * nodes.blockTokens <= length; cursor.blocks++) {
      const pages = this.#pagesOfBlock(lists, cursor.blocks);
      if (!this.#isPlain && !this.#areSealed(pages)) break;
      const node = this.#publishBlock(cursor, ids, pages);
      if (node === 0) break;
      cursor.node = node;
      cursor.serial = nodes.serial[node]!;
    }
    if (cursor.blocks === before) return;
    this.namespaces.touch(cursor.root.namespace, cursor.node, nodes.parent, nodes.depth);
  }
  /**
   * Adds a block behind `parent` (0: the root). `pages` [pagesPerNode] are in use and without content; the null page where a windowed
   * group has none. Returns its node, or 0 where it cannot be published: a page that is missing or published, no quota, no memory.
   */
  insert(
    root: PrefixRoot,
    parent: number,
    ids: Int32Array,
    at: number,
    pages: Int32Array,
    retention: Retention,
  ): number {
    if (!this.#canPublish(ids, at, pages) || !this.#makeRoom(root.namespace, parent, retention)) return 0;
    const { nodes } = this;
    let node: number;
    try {
      node = nodes.add(parent === 0 ? this.roots.plant(root) : parent, ids, at);
    } catch {
      if (root.node !== 0 && nodes.firstChild[root.node] === 0) this.roots.uproot(root.node);
      return 0; // no memory for more nodes
    }
    this.eachPage((g, at) => this.#hold(g, node, at, pages[at]!, retention));
    this.namespaces.add(root.namespace, node, retention);
    this.events.add({ kind: "stored", ...this.#entry(node) });
    return node;
  }
  /** The child of a node (0: the root) with the block of ids from `at` on; 0 when there is none. */
  find(root: PrefixRoot, parent: number, ids: Int32Array, at: number): number {
    const above = parent === 0 ? root.node : parent;
    return above === 0 ? 0 : this.nodes.find(above, ids, at);
  }
  /**
   * Before a sequence is cut to `length` tokens: moves its cursor, and unpublishes the block that becomes partial where the sequence alone
   * has its page, which it will write to.
   */
  cut(cursor: PrefixCursor, length: number, lists: readonly PagesByPosition[]): void {
    const { nodes } = this;
    const { blockTokens } = nodes;
    if (cursor.node === 0 || nodes.serial[cursor.node] !== cursor.serial) return this.#rewind(cursor);
    let last = 0; // the block in which the cut lies
    for (; cursor.blocks * blockTokens > length; cursor.blocks--) {
      last = cursor.node;
      cursor.node = cursor.blocks === 1 ? 0 : nodes.parent[last]!;
      cursor.serial = cursor.node === 0 ? 0 : nodes.serial[cursor.node]!;
    }
    if (last !== 0 && length % blockTokens !== 0 && this.#ownsTail(last, length, lists)) this.#remove(last);
  }
  /** Makes everything published under the adapter, or all, unreachable. */
  invalidate(adapter?: string): void {
    this.roots.nextEpoch(adapter);
    for (const root of this.roots.all()) {
      while (root.node !== 0 && !this.roots.isCurrent(root)) this.#remove(this.nodes.firstChild[root.node]!);
    }
  }
  /** Forgets all; the pools are reset by the caller. */
  clear(): void {
    for (const books of [this.roots, this.namespaces, this.nodes]) books.clear();
    this.events.add({ kind: "cleared" });
  }
  /** The numbers of all published blocks, each after the one before it. */
  published(): number[] {
    const { nodes } = this;
    return nodes
      .all()
      .filter((node) => nodes.depth[node]! > 0)
      .toSorted((a, b) => nodes.depth[a]! - nodes.depth[b]! || nodes.serial[a]! - nodes.serial[b]!);
  }
  /** What is published, each block after the one before it. */
  entries(): PrefixEntry[] {
    return this.published().map((node) => this.#entry(node));
  }
  /** Calls for each place in a node's list of pages, with its group. */
  eachPage(call: (group: number, at: number) => void): void {
    const { pageStart } = this.nodes;
    for (let g = 0; g < this.groups.length; g++)
      for (let at = pageStart[g]!; at < pageStart[g + 1]!; at++) call(g, at);
  }
  /** The lowest priority of a block's pages. */
  priority(node: number): number {
    let priority = MAX_PRIORITY;
    this.eachPage((g, at) => {
      const page = this.nodes.pages[node * this.nodes.pagesPerNode + at]!;
      if (page !== NULL_PAGE) priority = Math.min(priority, this.groups[g]!.pool.priority(page));
    });
    return priority;
  }
  #entry(node: number): PrefixEntry {
    const { nodes } = this;
    const { namespace, adapter } = this.roots.above(node)!;
    const [key, parent] = [hex(nodes.key(node)), hex(nodes.key(nodes.parent[node]!))];
    return { key, parent, tokens: Array.from(nodes.tokensOf(node)), namespace, adapter };
  }
  #pagesOfBlock(lists: readonly PagesByPosition[], block: number): Int32Array {
    const { pageStart } = this.nodes;
    this.eachPage((g, at) => {
      const perBlock = pageStart[g + 1]! - pageStart[g]!;
      this.#block[at] = lists[g]!.ids[block * perBlock + at - pageStart[g]!]!;
    });
    return this.#block;
  }
  /** Whether no page of a block waits to be encoded. */
  #areSealed(pages: Int32Array): boolean {
    let sealed = true;
    this.eachPage((g, at) => (sealed &&= this.groups[g]!.residuals?.isSealed(pages[at]!) ?? true));
    return sealed;
  }
  #publishBlock(cursor: PrefixCursor, ids: Int32Array, pages: Int32Array): number {
    const at = cursor.blocks * this.nodes.blockTokens;
    const node = this.find(cursor.root, cursor.node, ids, at);
    if (node === 0) return this.insert(cursor.root, cursor.node, ids, at, pages, cursor.retention);
    this.eachPage((g, at) => {
      const lost = this.nodes.pages[node * this.nodes.pagesPerNode + at] === NULL_PAGE; // behind a window
      if (lost && this.groups[g]!.pool.content(pages[at]!) === 0)
        this.#hold(g, node, at, pages[at]!, cursor.retention);
    });
    this.namespaces.add(cursor.root.namespace, node, cursor.retention);
    return node;
  }
  #hold(g: number, node: number, at: number, page: number, retention: Retention): void {
    if (page === NULL_PAGE) return;
    this.groups[g]!.pool.setContent(page, node, retention);
    this.nodes.pages[node * this.nodes.pagesPerNode + at] = page;
  }
  #canPublish(ids: Int32Array, at: number, pages: Int32Array): boolean {
    for (let i = 0; i < this.nodes.blockTokens; i++) if (!(ids[at + i]! >= 0)) return false; // an id nobody gave
    let present = 0;
    let fits = true;
    this.eachPage((g, at) => {
      const { pool, layout } = this.groups[g]!;
      if (pages[at] !== NULL_PAGE) present++;
      else if (layout.window === Infinity) fits = false;
      if (pool.content(pages[at]!) !== 0) fits = false;
    });
    return fits && present > 0;
  }
  /**
   * Room for one more block of a namespace: within its quota, else in the place of one of its own that nobody uses and that has no higher
   * priority, the lowest first, then the one that has gone unused the longest.
   */
  #makeRoom(namespace: string, parent: number, { priority = DEFAULT_PRIORITY }: Retention): boolean {
    if (this.namespaces.hasRoom(namespace)) return true;
    const { nodes } = this;
    const first = this.namespaces.first(
      namespace,
      priority,
      (node) => node !== parent && nodes.firstChild[node] === 0 && this.#isIdle(node),
      (node) => this.priority(node),
    );
    const serial = nodes.serial[parent];
    if (first !== 0) this.#remove(first); // bare blocks before it go too, and the parent may be one
    if (this.namespaces.hasRoom(namespace) && nodes.serial[parent] === serial) return true;
    this.#counts.refusedBlocks++;
    return false;
  }
  #isIdle(node: number): boolean {
    let idle = true;
    this.eachPage((g, at) => {
      const page = this.nodes.pages[node * this.nodes.pagesPerNode + at]!;
      const { pool } = this.groups[g]!;
      if (pool.references(page) + pool.pins(page) > 0) idle = false;
    });
    return idle;
  }
  /** Sends a cursor whose node has gone back to the root, and makes sure that the root is the one in use. */
  #revive(cursor: PrefixCursor): void {
    cursor.root = this.roots.of(cursor.root);
    if (cursor.node !== 0 && this.nodes.serial[cursor.node] !== cursor.serial) this.#rewind(cursor);
  }
  #rewind(cursor: PrefixCursor): void {
    Object.assign(cursor, { node: 0, serial: 0, blocks: 0 });
  }
  /** Whether a sequence cut to `length` would be the only one with a page that is then partial, of those that the node lists. */
  #ownsTail(node: number, length: number, lists: readonly PagesByPosition[]): boolean {
    return this.groups.some(({ pool, layout }, g) => {
      if (length % layout.pageSize === 0) return false;
      const page = lists[g]!.ids[Math.floor(length / layout.pageSize)]!;
      return pool.content(page) === node && pool.references(page) === 1 && pool.pins(page) === 0;
    });
  }
  #evicted(g: number, page: number, node: number): void {
    this.#counts.evictedPages++;
    const { nodes } = this;
    const start = node * nodes.pagesPerNode;
    nodes.pages[nodes.pages.indexOf(page, start + nodes.pageStart[g]!)] = NULL_PAGE;
    if (this.groups[g]!.layout.window === Infinity || this.#isBare(node)) this.#remove(node);
  }
  /** Whether a node has no pages and nothing behind it: nobody can go on from there. */
  #isBare(node: number): boolean {
    const { nodes } = this;
    if (nodes.firstChild[node] !== 0) return false;
    const start = node * nodes.pagesPerNode;
    return (
      nodes.depth[node] === 0 ||
      nodes.pages.subarray(start, start + nodes.pagesPerNode).every((page) => page === 0)
    );
  }
  /** Removes a block and all behind it, the last ones first, and blocks before it that are bare then. */
  #remove(node: number): void {
    const { nodes } = this;
    const keys: string[] = [];
    let above = nodes.parent[node]!;
    for (let at = node, gone = 0; gone !== node;) {
      while (nodes.firstChild[at] !== 0) at = nodes.firstChild[at]!;
      gone = at;
      at = nodes.parent[gone]!;
      this.#drop(gone, keys);
    }
    while (nodes.depth[above]! > 0 && this.#isBare(above)) {
      const gone = above;
      above = nodes.parent[gone]!;
      this.#drop(gone, keys);
    }
    if (nodes.depth[above] === 0 && nodes.firstChild[above] === 0) this.roots.uproot(above);
    this.events.add({ kind: "removed", keys });
  }
  #drop(node: number, keys: string[]): void {
    const { nodes } = this;
    keys.push(hex(nodes.key(node)));
    this.namespaces.remove(this.roots.above(node)!.namespace, node);
    for (let at = nodes.pagesPerNode - 1, g = this.groups.length - 1; at >= 0; at--) {
      if (at < nodes.pageStart[g]!) g--;
      this.groups[g]!.pool.clearContent(nodes.pages[node * nodes.pagesPerNode + at]!);
    }
    nodes.remove(node);
  }
}
