import { NULL_PAGE } from "./block-pool.ts";
import { PageFileError } from "./errors.ts";
import { type TransferOptions, writePageFile } from "./page-file-write.ts";
import type { PageFileHeader } from "./page-format.ts";
import { closeMatch, type MatchState, openMatch, matchState } from "./prefix-match.ts";
import { requirePrefixes } from "./prefixes.ts";
import { layoutText, sectionsOf } from "./snapshot.ts";
import { type CacheState, requireLive } from "./state.ts";

/** The published blocks in a file. Their pages follow group by group, in each group block by block. */
export interface PrefixContent {
  readonly kind: "prefixes";
  readonly model: string | null;
  readonly blocks: readonly SavedBlock[];
}
/** A block in a file. */
export interface SavedBlock {
  /** Place in the file's list of the block before it; -1 for the first of its tree. */
  readonly parent: number;
  readonly namespace: string;
  readonly adapter: string | null;
  readonly ids: readonly number[];
  /** For each of its places, group by group, whether it has a page there: behind a window it may have none. */
  readonly present: readonly boolean[];
}

/**
 * Pins pages until `closeMatch`, so that they are neither handed out nor written to. They are those of a match that leads nowhere, of which
 * the cache knows like of any other.
 */
export function pinPages(cache: CacheState, pages: readonly Int32Array[], what: string): MatchState {
  const index = requirePrefixes(cache, what);
  const root = index.roots.of({});
  const { groups, open } = index;
  const match = matchState(
    openMatch({
      root,
      node: 0,
      serial: 0,
      blocks: 0,
      ids: new Int32Array(0),
      pages,
      groups,
      dropped: undefined,
      open,
    }),
  );
  cache.observer?.({ op: "pin", match });
  return match;
}
/** Lets pinned pages go, the last ones first. */
export function unpinPages(cache: CacheState, match: MatchState): void {
  if (!match.open.has(match)) return;
  closeMatch(match);
  cache.observer?.({ op: "unmatch", match });
}
/** All that is published, in an order in which no block stands before its parent. */
function describeBlocks(cache: CacheState): { content: PrefixContent; pages: Int32Array[] } {
  const { nodes, roots, options, ...index } = requirePrefixes(cache, "savePrefixes");
  const published = requirePrefixes(cache, "savePrefixes").published();
  const places = new Map(published.map((node, i) => [node, i]));
  const pages = index.groups.map((): number[] => []);
  const blocks = published.map((node): SavedBlock => {
    const { namespace, adapter = null } = roots.above(node)!;
    const parent = places.get(nodes.parent[node]!) ?? -1;
    const listed = nodes.pages.subarray(node * nodes.pagesPerNode, (node + 1) * nodes.pagesPerNode);
    for (let g = 0; g < pages.length; g++) {
      for (const page of listed.subarray(nodes.pageStart[g]!, nodes.pageStart[g + 1]!))
        if (page !== NULL_PAGE) pages[g]!.push(page);
    }
    const present = Array.from(listed, (page) => page !== NULL_PAGE);
    return { parent, namespace, adapter, ids: [...nodes.tokensOf(node)], present };
  });
  return {
    content: { kind: "prefixes", model: options.model ?? null, blocks },
    pages: pages.map((list) => Int32Array.from(list)),
  };
}
/** Copies what is published to a file. See `KvCache.savePrefixes`. */
export async function savePrefixes(
  cache: CacheState,
  path: string,
  options: TransferOptions,
): Promise<number> {
  const { content, pages } = describeBlocks(cache);
  const header: PageFileHeader = {
    layout: layoutText(cache.layout),
    groups: sectionsOf(cache).map(({ group, residual, pageBytes }) => ({
      pages: residual ? 0 : pages[group]!.length, // what is published is encoded
      pageBytes,
    })),
    content,
  };
  const places = pages.flatMap((list, g) => Array.from(list, (page) => ({ group: g, page })));
  const pin = pinPages(cache, pages, "savePrefixes");
  const page = (index: number): Uint8Array | Promise<Uint8Array> => {
    requireLive(cache, "savePrefixes");
    const { group, page: at } = places[index]!;
    return cache.groups[group]!.storage.fetchPage(at);
  };
  try {
    await writePageFile(path, { header, page }, options);
  } finally {
    unpinPages(cache, pin);
  }
  return content.blocks.length;
}
/** Reads what {@link savePrefixes} wrote of its blocks. Throws PageFileError for what no cache of this layout could have written. */
export function parsePrefixes(
  cache: CacheState,
  { content, groups }: PageFileHeader,
  file: string,
): PrefixContent {
  const index = requirePrefixes(cache, "loadPrefixes");
  const { kind, model, blocks } = (content ?? {}) as Partial<PrefixContent>;
  const { blockTokens, pagesPerNode, pageStart } = index.nodes;
  const fail = (why: string): never => {
    throw new PageFileError("header", `[kvcache] ${file} ${why}`, { file });
  };
  if (kind !== "prefixes" || !Array.isArray(blocks)) return fail("does not describe prefixes");
  if (model !== (index.options.model ?? null)) return fail(`is of the model ${JSON.stringify(model)}`);
  const counts = cache.groups.map(() => 0);
  (blocks as (Partial<SavedBlock> | null)[]).forEach((block, i) => {
    const { parent, namespace, adapter, ids, present } = block ?? {};
    const isOwner = typeof namespace === "string" && (adapter === null || typeof adapter === "string");
    const isPlace = Number.isSafeInteger(parent) && parent! >= -1 && parent! < i;
    const isIds =
      Array.isArray(ids) &&
      ids.length === blockTokens &&
      ids.every((id) => Number.isSafeInteger(id) && id >= 0 && id < 2 ** 31);
    const isPresent =
      Array.isArray(present) &&
      present.length === pagesPerNode &&
      present.every((p) => typeof p === "boolean");
    if (!isOwner || !isPlace || !isIds || !isPresent) fail(`has a wrong block ${i}`);
    for (let g = 0; g < counts.length; g++)
      counts[g]! += present!.slice(pageStart[g], pageStart[g + 1]).filter(Boolean).length;
  });
  if (sectionsOf(cache).some(({ group, residual }, s) => groups[s]!.pages !== (residual ? 0 : counts[group])))
    fail("has another number of pages than its blocks");
  return { kind, model: model ?? null, blocks };
}
