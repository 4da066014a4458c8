import { PageFileError } from "./errors.ts";
import type { CacheLayout } from "./layout.ts";
import type { ExpectedPages } from "./page-file.ts";
import type { PageFileHeader } from "./page-format.ts";
import { firstUnsealed } from "./seal.ts";
import { type CacheState, type GroupState, pagesFor, type SequenceState } from "./state.ts";

/**
 * A sequence in a file, besides its pages, which follow group by group, in order of position, null pages left out; of an "int4" group those
 * that are encoded, and then those that are not.
 */
export interface SequenceContent {
  readonly kind: "sequence";
  /** Committed tokens. */
  readonly length: number;
  /** Their ids, -1 where none was given. All are there, so that a short file cannot claim a great length. */
  readonly tokenIds: readonly number[];
  /** For each group, the first page that is not behind the window; at least its sink pages. */
  readonly from: readonly number[];
  /** For each group, the first position whose page is not encoded; absent in a cache without "int4" groups. */
  readonly sealed?: readonly number[] | undefined;
}
/** Which page of which group stands at which position. */
export interface PagePlace {
  readonly group: number;
  readonly at: number; // in the sequence's list
  readonly residual: boolean; // its rows are not encoded
}
/** Pages of one size that lie together in a file: those of a group, or the residual pages of an "int4" group. */
export interface FileSection {
  readonly group: number;
  readonly residual: boolean;
  readonly pageBytes: number;
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
      ...(g.residualDtype === undefined ? [] : [g.residualDtype]),
    ]),
  );
}
/** What a file must be to hold pages of this cache. */
export function expectedPages(cache: CacheState): ExpectedPages {
  return { layout: layoutText(cache.layout), pageBytes: sectionsOf(cache).map(({ pageBytes }) => pageBytes) };
}
/** The sections of every file of this cache, in order. */
export function sectionsOf({ groups }: CacheState): FileSection[] {
  return groups.flatMap(({ storage, residuals }, group) => {
    const pages = { group, residual: false, pageBytes: storage.pageBytes };
    if (residuals === undefined) return [pages];
    return [pages, { group, residual: true, pageBytes: storage.residualPageBytes }];
  });
}
/** The header of a sequence's file. */
export function describe(state: SequenceState): PageFileHeader {
  const { cache, length, tokenIds, lists } = state;
  const content: SequenceContent = {
    kind: "sequence",
    length,
    tokenIds: tokenIds === undefined ? new Array<number>(length).fill(-1) : [...tokenIds.subarray(0, length)],
    from: lists.map((list) => list.from),
    ...(hasResiduals(cache) && { sealed: lists.map((list, n) => firstUnsealed(cache.groups[n]!, list)) }),
  };
  const places = placesOf(cache, content);
  return {
    layout: layoutText(cache.layout),
    groups: sectionsOf(cache).map(({ group, residual, pageBytes }) => ({
      pages: places.filter((p) => p.group === group && p.residual === residual).length,
      pageBytes,
    })),
    content,
  };
}
function hasResiduals({ groups }: CacheState): boolean {
  return groups.some(({ residuals }) => residuals !== undefined);
}
/** Positions of a group's pages for a sequence of `length` tokens, without those behind the window. */
function placesIn({ layout, sinkPages }: GroupState, length: number, from: number): number[] {
  const count = pagesFor(length, layout.pageSize);
  const places: number[] = [];
  for (let at = 0; at < count; at++) if (at < sinkPages || at >= from) places.push(at);
  return places;
}
/** Every page of a sequence in the order of its file. */
export function placesOf(cache: CacheState, { length, from, sealed }: SequenceContent): PagePlace[] {
  return sectionsOf(cache).flatMap(({ group, residual }) =>
    placesIn(cache.groups[group]!, length, from[group]!)
      .filter((at) => at >= (sealed?.[group] ?? Infinity) === residual)
      .map((at) => ({ group, at, residual })),
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
  const { kind, length, tokenIds, from, sealed } = content;
  if (kind !== "sequence" || !isWhole(length, 0, Number.MAX_SAFE_INTEGER)) return false;
  if (!Array.isArray(from) || from.length !== cache.groups.length || !areIds(tokenIds, length)) return false;
  if (!cache.groups.every((g, n) => fitsGroup(g, length, from[n]))) return false;
  if (!areSealed(cache, length, sealed)) return false;
  const places = placesOf(cache, content as SequenceContent);
  return sectionsOf(cache).every(
    ({ group, residual }, s) =>
      places.filter((p) => p.group === group && p.residual === residual).length === groups[s]!.pages,
  );
}
/** Whether full pages at most are encoded, and only of "int4" groups some are not. */
export function areSealed(cache: CacheState, length: number, sealed: unknown): boolean {
  if (!hasResiduals(cache)) return sealed === undefined;
  if (!Array.isArray(sealed) || sealed.length !== cache.groups.length) return false;
  return cache.groups.every(({ residuals, layout }, n) => {
    const [count, full] = [pagesFor(length, layout.pageSize), Math.floor(length / layout.pageSize)];
    return residuals === undefined ? sealed[n] === count : isWhole(sealed[n], 0, full);
  });
}
function isWhole(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}
function areIds(ids: unknown, length: number): boolean {
  return Array.isArray(ids) && ids.length === length && ids.every((id) => isWhole(id, -1, 2 ** 31 - 1));
}
/** Whether a sequence may have dropped all between the sinks and `from`. */
function fitsGroup({ layout, sinkPages }: GroupState, length: number, from: unknown): boolean {
  const { pageSize, window } = layout;
  if (!isWhole(from, sinkPages, Number.MAX_SAFE_INTEGER)) return false;
  return from === sinkPages || from * pageSize + window - 1 <= length;
}
