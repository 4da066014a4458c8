import { PageFileError } from "./errors.ts";
import type { CacheLayout } from "./layout.ts";
import type { ExpectedPages } from "./page-file.ts";
import type { PageFileHeader } from "./page-format.ts";
import { type CacheState, type GroupState, pagesFor, type SequenceState } from "./state.ts";

/** A sequence in a file, besides its pages, which follow group by group, in order of position, null pages left out. */
export interface SequenceContent {
  readonly kind: "sequence";
  /** Committed tokens. */
  readonly length: number;
  /** Their ids, -1 where none was given. All are there, so that a short file cannot claim a great length. */
  readonly tokenIds: readonly number[];
  /** For each group, the first page that is not behind the window; at least its sink pages. */
  readonly from: readonly number[];
}
/** Which page of which group stands at which position. */
export interface PagePlace {
  readonly group: number;
  readonly at: number; // in the sequence's list
}

/** What the groups store, as text: pages fit a cache with the same. */
export function layoutText({ groups }: CacheLayout): string {
  return JSON.stringify(
    groups.map((g) => [
      g.layers,
      g.numKvHeads,
      g.headDim,
      g.valueHeadDim,
      g.valuesInKeys,
      g.window === Infinity ? null : g.window,
      g.sinks,
      g.pageSize,
      g.layout,
      g.dtype,
    ]),
  );
}
/** What a file must be to hold pages of this cache. */
export function expectedPages({ layout, groups }: CacheState): ExpectedPages {
  return { layout: layoutText(layout), pageBytes: groups.map(({ storage }) => storage.pageBytes) };
}
/** The header of a sequence's file. */
export function describe(state: SequenceState): PageFileHeader {
  const { cache, length, tokenIds, lists } = state;
  const content: SequenceContent = {
    kind: "sequence",
    length,
    tokenIds: tokenIds === undefined ? new Array<number>(length).fill(-1) : [...tokenIds.subarray(0, length)],
    from: lists.map((list) => list.from),
  };
  return {
    layout: layoutText(cache.layout),
    groups: cache.groups.map((group, n) => ({
      pages: placesIn(group, length, content.from[n]!).length,
      pageBytes: group.storage.pageBytes,
    })),
    content,
  };
}
/** Positions of a group's pages for a sequence of `length` tokens, without those behind the window. */
export function placesIn({ layout, sinkPages }: GroupState, length: number, from: number): number[] {
  const count = pagesFor(length, layout.pageSize);
  const places: number[] = [];
  for (let at = 0; at < count; at++) if (at < sinkPages || at >= from) places.push(at);
  return places;
}
/** Every page of a sequence in the order of its file. */
export function placesOf(cache: CacheState, { length, from }: SequenceContent): PagePlace[] {
  return cache.groups.flatMap((group, n) =>
    placesIn(group, length, from[n]!).map((at) => ({ group: n, at })),
  );
}
/** Reads what {@link describe} wrote. Throws PageFileError for what this cache could not have written, forged headers included. */
export function parseSequence(cache: CacheState, header: PageFileHeader, file: string): SequenceContent {
  const content = header.content as Partial<SequenceContent> | null;
  const fits = content !== null && typeof content === "object" && isSequence(cache, header, content);
  if (fits) return content as SequenceContent;
  throw new PageFileError("header", `[kvcache] ${file} does not describe a sequence of this cache`, { file });
}
function isSequence(
  cache: CacheState,
  { groups }: PageFileHeader,
  content: Partial<SequenceContent>,
): boolean {
  const { kind, length, tokenIds, from } = content;
  if (kind !== "sequence" || !isWhole(length, 0, Number.MAX_SAFE_INTEGER)) return false;
  if (!Array.isArray(from) || from.length !== cache.groups.length) return false;
  return (
    areIds(tokenIds, length) && cache.groups.every((g, n) => fitsGroup(g, length, from[n], groups[n]!.pages))
  );
}
function isWhole(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}
function areIds(ids: unknown, length: number): boolean {
  return Array.isArray(ids) && ids.length === length && ids.every((id) => isWhole(id, -1, 2 ** 31 - 1));
}
/** Whether a sequence may have dropped all between the sinks and `from`, and then has so many pages. */
function fitsGroup({ layout, sinkPages }: GroupState, length: number, from: unknown, pages: number): boolean {
  const { pageSize, window } = layout;
  if (!isWhole(from, sinkPages, Number.MAX_SAFE_INTEGER)) return false;
  if (from > sinkPages && !(from * pageSize + window - 1 <= length)) return false;
  return pagesFor(length, pageSize) - (from - sinkPages) === pages;
}
