import { randomUUID } from "node:crypto";
import { DisposedError } from "@heed/tensor";
import { StateError } from "./errors.ts";
import { pollFences, raise } from "./fences.ts";
import { openPageFile, readPages } from "./page-file.ts";
import { type PageSource, type TransferOptions, writePageFile } from "./page-file-write.ts";
import {
  describe,
  expectedPages,
  type PagePlace,
  parseSequence,
  placesOf,
  type SequenceContent,
} from "./snapshot.ts";
import { emptyLists, releaseLists, takeLists } from "./swap-pages.ts";
import { nameOf } from "./residual.ts";
import { closeSequence } from "./sequence.ts";
import { expirePriorities, type OpenOptions, openSequence } from "./prefixes.ts";
import { type CacheState, requireLive, type SequenceState } from "./state.ts";
import type { PageSink, Tier } from "./tiers.ts";

/** How a sequence is loaded, and whose its blocks will be. */
export interface LoadOptions extends TransferOptions, Omit<OpenOptions, "match"> {}

/** The pages of a sequence as they are now, for as long as a fence holds them. Rows without a token are zeros, whoever had them before. */
function sourceOf(state: SequenceState): PageSource {
  const { cache, lists, length } = state;
  const header = describe(state);
  const places = placesOf(cache, header.content as SequenceContent);
  // by the names that tables have for them now: rows stay in a fenced residual page although their page may be encoded meanwhile
  const names = places.map(({ group, at }) => nameOf(cache.groups[group]!, lists[group]!.ids[at]!));
  return {
    header,
    page(index) {
      requireLive(cache, "save");
      const { group, at } = places[index]!;
      const { storage, layout } = cache.groups[group]!;
      return storage.fetchPage(names[index]!, Math.min(layout.pageSize, length - at * layout.pageSize));
    },
  };
}
/** Stores pages where the sequence's lists say. */
function sinkOf({ cache, lists }: SequenceState, places: readonly PagePlace[]): PageSink {
  return (index, bytes) => {
    requireLive(cache, "load");
    const { group, at } = places[index]!;
    const books = cache.groups[group]!;
    books.storage.writePage(nameOf(books, lists[group]!.ids[at]!), bytes);
  };
}
/** Throws DisposedError when the sequence was released while its pages were on their way. */
function requireStillOpen({ released }: SequenceState, what: string): void {
  if (released) throw new DisposedError(`[kvcache.${what}] the sequence was released meanwhile`, { what });
}
/**
 * Moves a sequence's pages to a tier and gives them back to their pools. See `KvCache.swapOut`; the caller has checked that the sequence is
 * open, idle and present.
 */
export async function swapOut(state: SequenceState, tier: Tier, options: TransferOptions): Promise<void> {
  const { cache, length } = state;
  const source = sourceOf(state);
  const key = randomUUID();
  using fence = raise(cache, new Set([state]), undefined);
  state.away = { what: "being swapped out", length, drop: () => undefined };
  try {
    await tier.put(key, source, options);
  } catch (error) {
    state.away = undefined;
    throw error;
  }
  const drop = (): void => void tier.drop(key).catch(() => undefined);
  if (state.released) drop();
  requireStillOpen(state, "swapOut");
  fence[Symbol.dispose](); // before the pages go, so that they do in their own order, tail first
  releaseLists(state);
  state.away = { what: "swapped out", length, drop, back: { tier, key, header: source.header } };
}
/** Brings a sequence back. See `KvCache.swapIn`. */
export async function swapIn(state: SequenceState, options: TransferOptions): Promise<void> {
  const { away } = state;
  if (away?.back === undefined) {
    throw new StateError(`[kvcache.swapIn] the sequence is ${away?.what ?? "not swapped out"}`, {
      length: state.length,
    });
  }
  const { tier, key, header } = away.back;
  const read = (sink: PageSink): Promise<void> => tier.take(key, header, sink, options);
  await bring(state, header.content as SequenceContent, read, "swapIn");
}
/** Copies a sequence to a file. See `KvCache.save`. */
export async function save(state: SequenceState, path: string, options: TransferOptions): Promise<void> {
  const source = sourceOf(state);
  using _ = raise(state.cache, new Set([state]), undefined);
  await writePageFile(path, source, options);
}
/** Reads a sequence from a file into pages of its own; its books are new. See `KvCache.load`. */
export async function load(cache: CacheState, path: string, options: LoadOptions): Promise<SequenceState> {
  await using file = await openPageFile(path, expectedPages(cache));
  requireLive(cache, "load");
  const content = parseSequence(cache, file.header, path);
  const { namespace, adapter, priority, expires } = options;
  const owner = { namespace, adapter, priority, expires };
  const state = openSequence(cache, owner);
  cache.observer?.({ op: "open", sequence: state, options: owner });
  if (content.tokenIds.some((id) => id !== -1)) state.tokenIds = Int32Array.from(content.tokenIds);
  try {
    await bring(state, content, (sink) => readPages(file, sink, options), "load");
  } catch (error) {
    if (!state.released) closeSequence(state);
    throw error;
  }
  return state;
}
/** Takes pages for an empty sequence and has them read, or leaves it as it was. */
async function bring(
  state: SequenceState,
  content: SequenceContent,
  read: (sink: PageSink) => Promise<void>,
  what: string,
): Promise<void> {
  const { cache, away } = state;
  const places = placesOf(cache, content);
  pollFences(cache);
  expirePriorities(cache);
  takeLists(state, content, places);
  using fence = raise(cache, new Set([state]), undefined);
  state.away = { what: "being brought back", length: content.length, drop: away?.drop ?? (() => undefined) };
  try {
    await read(sinkOf(state, places));
    requireStillOpen(state, what);
  } catch (error) {
    requireStillOpen(state, what); // its release drops the entry, so that reading may have found none
    fence[Symbol.dispose]();
    emptyLists(state);
    state.away = away;
    throw error;
  }
  state.away = undefined;
}
