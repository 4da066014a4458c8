import type { BlockPool } from "./block-pool.ts";
import type { GroupLayout } from "./layout.ts";
import type { PrefixNodes } from "./prefix-nodes.ts";
import type { Residuals } from "./residual.ts";
import { pagesBehind } from "./window.ts";

/** What the index needs to know of a group. */
export interface PrefixGroup {
  readonly layout: GroupLayout;
  readonly pool: BlockPool;
  readonly residuals: Residuals | undefined; // of an "int4" group
  readonly sinkPages: number; // pages of the first tokens that stay behind a window
}
/** A prefix that was found. */
export interface FoundPrefix {
  /** Nodes from the root on, the last one of which may be used in part. */
  readonly path: readonly number[];
  /** Full blocks. */
  readonly blocks: number;
  readonly length: number;
}

/**
 * Follows a path of nodes and says at which lengths a sequence could go on from it: where each group has its sinks and the pages of the
 * window of the next query, and of the margin for drafts before it.
 */
class Reach {
  readonly #nodes: PrefixNodes;
  readonly #groups: readonly PrefixGroup[];
  readonly #margin: number;
  readonly #absent: number[]; // per group, last position behind the sinks without a page; Infinity when a sink has none
  constructor(
    nodes: PrefixNodes,
    groups: readonly PrefixGroup[],
    margin: number,
    absent?: readonly number[],
  ) {
    this.#nodes = nodes;
    this.#groups = groups;
    this.#margin = margin;
    this.#absent = absent?.slice() ?? groups.map(() => -1);
  }
  clone(): Reach {
    return new Reach(this.#nodes, this.#groups, this.#margin, this.#absent);
  }
  /** Adds the node of block `b` to the path, as far as `length` tokens reach; returns whether a sequence could end there. */
  endsAt(node: number, b: number, length: number): boolean {
    let fits = true;
    for (let g = 0; g < this.#groups.length; g++) {
      const { layout, sinkPages } = this.#groups[g]!;
      if (layout.window === Infinity) continue;
      this.#follow(g, node, b, Math.ceil(length / layout.pageSize));
      fits &&= this.#absent[g]! < Math.max(sinkPages, pagesBehind(layout, length, this.#margin));
    }
    return fits;
  }
  #follow(g: number, node: number, b: number, count: number): void {
    const { pageStart, pagesPerNode, pages } = this.#nodes;
    const perBlock = pageStart[g + 1]! - pageStart[g]!;
    const at = node * pagesPerNode + pageStart[g]!;
    for (let i = 0; i < perBlock && b * perBlock + i < count; i++) {
      if (pages[at + i] !== 0) continue;
      const position = b * perBlock + i;
      this.#absent[g] =
        position < this.#groups[g]!.sinkPages ? Infinity : Math.max(this.#absent[g]!, position);
    }
  }
}
/** Tokens from the start that a node's block and ids from `at` on have in common, at most `most`. */
function common(nodes: PrefixNodes, node: number, ids: Int32Array, at: number, most: number): number {
  const start = node * nodes.blockTokens;
  let n = 0;
  while (n < most && nodes.tokens[start + n] === ids[at + n]) n++;
  return n;
}
/** The child that agrees longest with the ids behind a path, of those from which a sequence could go on: its node and the tokens. */
function longestChild(
  nodes: PrefixNodes,
  reach: Reach,
  parent: number,
  blocks: number,
  ids: Int32Array,
): [number, number] {
  const at = blocks * nodes.blockTokens;
  let best: [number, number] = [0, 0];
  for (let child = nodes.firstChild[parent]!; child !== 0; child = nodes.nextSibling[child]!) {
    const rows = common(nodes, child, ids, at, Math.min(nodes.blockTokens, ids.length - 1 - at));
    if (rows > best[1] && reach.clone().endsAt(child, blocks, at + rows)) best = [child, rows];
  }
  return best;
}
/**
 * The longest prefix of `ids` below `root` that every group still has, at most ids.length - 1 tokens, so that something is left to
 * compute. With `partial`, also the first tokens of a further block.
 */
export function findPrefix(
  nodes: PrefixNodes,
  groups: readonly PrefixGroup[],
  margin: number,
  root: number,
  ids: Int32Array,
  partial: boolean,
): FoundPrefix {
  const { blockTokens } = nodes;
  const path: number[] = [];
  const reach = new Reach(nodes, groups, margin);
  let blocks = 0;
  for (let at = 0; at + blockTokens < ids.length; at += blockTokens) {
    const node = nodes.find(path.at(-1) ?? root, ids, at);
    if (node === 0) break;
    path.push(node);
    if (reach.endsAt(node, path.length - 1, at + blockTokens)) blocks = path.length;
  }
  if (partial && blocks === path.length) {
    const [child, rows] = longestChild(nodes, reach, path.at(-1) ?? root, blocks, ids);
    if (rows > 0) return { path: [...path, child], blocks, length: blocks * blockTokens + rows };
  }
  return { path: path.slice(0, blocks), blocks, length: blocks * blockTokens };
}
/** The pages of a found prefix in one group, the null page behind the window. */
export function pagesOnPath(
  nodes: PrefixNodes,
  { layout, sinkPages }: PrefixGroup,
  g: number,
  margin: number,
  { path, length }: FoundPrefix,
): Int32Array {
  const { pageStart, pagesPerNode, pages } = nodes;
  const perBlock = pageStart[g + 1]! - pageStart[g]!;
  const from = firstKept(layout, sinkPages, length, margin);
  const list = new Int32Array(Math.ceil(length / layout.pageSize));
  for (let i = 0; i < list.length; i++) {
    if (i >= sinkPages && i < from) continue;
    const inBlock = i % perBlock;
    list[i] = pages[path[(i - inBlock) / perBlock]! * pagesPerNode + pageStart[g]! + inBlock]!;
  }
  return list;
}
/** First position behind the sinks at which a sequence of `length` tokens has a page. */
export function firstKept(layout: GroupLayout, sinkPages: number, length: number, margin: number): number {
  return layout.window === Infinity ? sinkPages : Math.max(sinkPages, pagesBehind(layout, length, margin));
}
