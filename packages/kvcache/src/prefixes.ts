import { ArgumentError } from "@heed/tensor";
import { NULL_PAGE, requireRetention, type Retention } from "./block-pool.ts";
import { StateError } from "./errors.ts";
import type { PrefixIndex } from "./prefix-index.ts";
import { closeMatch, type MatchState, matchState, PrefixMatch } from "./prefix-match.ts";
import type { PrefixOwner } from "./prefix-roots.ts";
import { firstKept } from "./prefix-search.ts";
import { noteFences } from "./fences.ts";
import { type CacheState, newSequence, type PageList, requireWhole, type SequenceState } from "./state.ts";

/** What to look for in `cache.match()`. */
export interface MatchOptions extends PrefixOwner {
  /**
   * Also take the first tokens of a block that differs further on: its rows are copied before anything is added; not where a group stores
   * "int4", whose pages are encoded as a whole. Default false.
   */
  readonly partial?: boolean | undefined;
}
/** What a sequence begins with, and whose its blocks will be. Give `match`, or an owner. */
export interface OpenOptions extends PrefixOwner, Retention {
  /** A prefix to begin with; it is used up, and the sequence belongs to its owner. */
  readonly match?: PrefixMatch | undefined;
}
const MAX_ID = 2 ** 31 - 1;

/** The cache's index of prefixes. Throws StateError when it has none. */
export function requirePrefixes(cache: CacheState, what: string): PrefixIndex {
  if (cache.prefixes !== undefined) return cache.prefixes;
  throw new StateError(`[kvcache.${what}] this cache keeps no prefixes; make it with the option prefixes`, {
    what,
  });
}
function requireOwner({ namespace, adapter }: PrefixOwner): void {
  for (const [name, value] of Object.entries({ namespace, adapter })) {
    if (value === undefined || typeof value === "string") continue;
    throw new ArgumentError(`[kvcache] ${name} must be a string; got ${typeof value}`, { [name]: value });
  }
}
/** A copy of the ids. Throws ArgumentError unless they are whole numbers from 0 to 2^31 - 1. */
function idsOf(ids: ArrayLike<number>): Int32Array {
  const copy = new Int32Array(ids.length);
  for (let i = 0; i < copy.length; i++) {
    const id = ids[i]!;
    copy[i] = id;
    if (copy[i] !== id || id < 0) requireWhole(id, 0, MAX_ID, `id ${i}`); // its text costs more than all the rest
  }
  return copy;
}
/** See {@link KvCache.match}. */
export function matchPrefix(cache: CacheState, ids: ArrayLike<number>, options: MatchOptions): PrefixMatch {
  const index = requirePrefixes(cache, "match");
  requireOwner(options);
  const match = index.match(idsOf(ids), options, options.partial ?? false, (match) =>
    cache.observer?.({ op: "unmatch", match }),
  );
  cache.observer?.({ op: "match", match: matchState(match), wanted: ids, options });
  return match;
}
/** Books of a sequence that starts empty, or with the pages of a match. See {@link KvCache.open}. */
export function openSequence(cache: CacheState, options: OpenOptions): SequenceState {
  requireOwner(options);
  requireRetention(options);
  const { priority, expires } = options;
  if (options.match !== undefined) return openOn(cache, requireMatch(cache, options), { priority, expires });
  const state = newSequence(cache);
  state.prefix = cache.prefixes?.cursor(options, { priority, expires });
  return state;
}
function requireMatch(cache: CacheState, { match, namespace, adapter }: OpenOptions): MatchState {
  const index = requirePrefixes(cache, "open");
  if (!(match instanceof PrefixMatch) || matchState(match).groups !== index.groups)
    throw new ArgumentError(
      "[kvcache.open] match must be a match of this cache; make one with cache.match()",
    );
  if (namespace !== undefined || adapter !== undefined) {
    throw new ArgumentError("[kvcache.open] a match says whose it is; leave out namespace and adapter", {
      namespace,
      adapter,
    });
  }
  const state = matchState(match);
  if (!match.isOpen) throw new StateError("[kvcache.open] this match was used or dropped; make another one");
  if (!index.roots.isCurrent(state.root))
    throw new StateError("[kvcache.open] this match was invalidated; drop it and make another one");
  return state;
}
function openOn(cache: CacheState, match: MatchState, retention: Retention): SequenceState {
  const { ids, root, node, serial, blocks } = match;
  const lists = match.pages.map((pages, n): PageList => {
    const { pool, layout, sinkPages } = cache.groups[n]!;
    for (const page of pages) if (page !== NULL_PAGE) pool.retain(page);
    const from = firstKept(layout, sinkPages, ids.length, cache.layout.draftMargin);
    const count = pages.length;
    return { ids: pages.slice(), count, from, sealed: count, stamp: ++cache.stamp, tailFenced: false };
  });
  const state = newSequence(cache, lists);
  state.length = ids.length;
  state.tokenIds = ids.length === 0 ? undefined : ids.slice();
  state.prefix = { root, node, serial, blocks, retention };
  cache.tokens += ids.length;
  noteFences(state); // a partial last page is written to in place once its block is published no more
  closeMatch(match);
  return state;
}
/** Publishes the blocks that a commit has filled, before pages behind windows go. */
export function publishBlocks(cache: CacheState, { prefix, tokenIds, length, lists }: SequenceState): void {
  if (prefix === undefined || tokenIds === undefined) return;
  cache.prefixes?.publish(prefix, tokenIds, length, lists);
}
/** Unpublishes what a sequence that is cut to `length` tokens will write over, before its pages go. */
export function cutPrefix({ cache, prefix, lists }: SequenceState, length: number): void {
  if (prefix !== undefined) cache.prefixes?.cut(prefix, length, lists);
}
/** Lets priorities end whose time has come. */
export function expirePriorities(cache: CacheState): void {
  if (cache.prefixes === undefined) return;
  const now = cache.now();
  let some = false;
  for (const { pool } of cache.groups) if (pool.expire(now)) some = true;
  if (some) cache.observer?.({ op: "clock", now });
}
