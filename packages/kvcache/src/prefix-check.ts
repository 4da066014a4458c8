import { NULL_PAGE } from "./block-pool.ts";
import { InvariantError } from "./errors.ts";
import type { PrefixIndex } from "./prefix-index.ts";
import type { SequenceState } from "./state.ts";

function fail(why: string, details: Record<string, unknown>): never {
  throw new InvariantError(`[kvcache.check] ${why}`, details);
}
/** Checks one page of a node; returns 1 when there is one. */
function checkPage({ nodes, groups }: PrefixIndex, g: number, node: number, at: number): number {
  const page = nodes.pages[node * nodes.pagesPerNode + at]!;
  const { pool, layout } = groups[g]!;
  if (page === NULL_PAGE) {
    if (layout.window === Infinity) fail(`block ${node} lacks a page of group ${g}`, { node, group: g });
    return 0;
  }
  if (pool.content(page) !== node)
    fail(`block ${node} lists page ${page} of group ${g}, which holds ${pool.content(page)}`, { node, page });
  return 1;
}
/** Checks every node; returns how many pages of each group they list. */
function checkNodes(index: PrefixIndex): number[] {
  const { nodes, roots, namespaces } = index;
  const listed = index.groups.map(() => 0);
  const counts = new Map<string, number>();
  for (const node of nodes.all()) {
    const root = roots.above(node);
    if (root === undefined || !roots.isCurrent(root)) fail(`block ${node} is in no tree`, { node });
    if (nodes.depth[node] === 0) {
      if (nodes.firstChild[node] === 0) fail(`root ${node} has no blocks`, { node });
      continue;
    }
    nodes.check(node);
    counts.set(root.namespace, (counts.get(root.namespace) ?? 0) + 1);
    if (index.priority(node) < namespaces.lowest(root.namespace))
      fail(`block ${node} has a priority below the lowest of its namespace`, { node });
    index.eachPage((g, at) => (listed[g]! += checkPage(index, g, node, at)));
  }
  for (const [namespace, blocks] of counts) {
    if (namespaces.count(namespace) !== blocks || blocks > namespaces.quota(namespace))
      fail(`namespace ${JSON.stringify(namespace)} has ${blocks} blocks`, { namespace, blocks });
  }
  return listed;
}
/** Throws InvariantError unless blocks match parents, tokens, pages and namespaces, and pages with content their blocks. */
export function checkPrefixes(index: PrefixIndex): void {
  const listed = checkNodes(index);
  index.groups.forEach(({ pool }, g) => {
    let labelled = 0;
    for (let page = 1; page <= pool.count; page++) if (pool.content(page) !== 0) labelled++;
    if (labelled !== listed[g])
      fail(`${labelled} pages of group ${g} have content, but blocks list ${listed[g]}`, {
        group: g,
        labelled,
      });
  });
}
/** Throws InvariantError unless a sequence has the tokens of the published block that it remembers as its last. */
export function checkCursor({ nodes }: PrefixIndex, { prefix, tokenIds, length, away }: SequenceState): void {
  if (prefix === undefined || prefix.node === 0 || nodes.serial[prefix.node] !== prefix.serial) return;
  const { blockTokens, tokens, parent, depth } = nodes;
  const tokensHeld = away?.length ?? length; // a sequence that is swapped out keeps its place
  let fits = depth[prefix.node] === prefix.blocks && prefix.blocks * blockTokens <= tokensHeld;
  for (let node = prefix.node, b = prefix.blocks - 1; fits && b >= 0; b--, node = parent[node]!) {
    for (let i = 0; i < blockTokens; i++)
      fits &&= tokens[node * blockTokens + i] === tokenIds?.[b * blockTokens + i];
  }
  if (!fits)
    fail(`a sequence of ${length} tokens does not have those of block ${prefix.node}`, {
      length,
      node: prefix.node,
    });
}
