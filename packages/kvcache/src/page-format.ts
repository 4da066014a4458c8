import { checksum } from "./checksum.ts";
import { PageFileError } from "./errors.ts";

/**
 * A page file, little endian:
 *
 *     0   8   magic "heedpage"
 *     8   4   version, 1
 *     12  4   bytes of the header, h
 *     16  8   checksum of the header
 *     24  8   checksum of bytes 0 .. 23
 *     32  h   header, JSON
 *     ..      pages, each 8 bytes of checksum (seeded by the header's and the page's number) and its bytes
 *
 * and nothing behind.
 */
export interface PageFileHeader {
  /** What the pages store, as `layoutText` writes it. */
  readonly layout: string;
  /** Pages of each group, one group after the other, and the bytes of one; an "int4" group counts twice, for its residual pages also. */
  readonly groups: readonly { readonly pages: number; readonly pageBytes: number }[];
  /** What the pages mean. */
  readonly content: unknown;
}
/** Bytes before the header. */
export const PREFIX_BYTES = 32;
/** Bytes before each page. */
export const CHECKSUM_BYTES = 8;
/** A longer header is refused before memory for it is asked for: the ids of some ten million tokens. */
export const MAX_HEADER_BYTES: number = 2 ** 27;
const MAGIC = new TextEncoder().encode("heedpage");
const VERSION = 1;

/** What the first bytes say. */
export interface Prefix {
  readonly headerBytes: number;
  readonly headerChecksum: bigint;
}
/** Prefix and header as bytes, and the header's checksum. Throws PageFileError for a header longer than can be read back. */
export function encodeHeader(
  header: PageFileHeader,
  file: string,
): { bytes: Uint8Array<ArrayBuffer>; headerChecksum: bigint } {
  const json = new TextEncoder().encode(JSON.stringify(header));
  if (json.length > MAX_HEADER_BYTES) {
    throw new PageFileError("header", `[kvcache] a header of ${json.length} bytes is too long for ${file}`, {
      file,
      bytes: json.length,
      most: MAX_HEADER_BYTES,
    });
  }
  const bytes = new Uint8Array(PREFIX_BYTES + json.length);
  const view = new DataView(bytes.buffer);
  const headerChecksum = checksum(json);
  bytes.set(MAGIC);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, json.length, true);
  view.setBigUint64(16, headerChecksum, true);
  view.setBigUint64(24, checksum(bytes.subarray(0, 24)), true);
  bytes.set(json, PREFIX_BYTES);
  return { bytes, headerChecksum };
}
/** Reads the first bytes. Throws PageFileError. */
export function parsePrefix(bytes: Uint8Array, file: string): Prefix {
  const view = new DataView(bytes.buffer, bytes.byteOffset, PREFIX_BYTES);
  if (MAGIC.some((byte, i) => bytes[i] !== byte)) {
    throw new PageFileError("header", `[kvcache] ${file} is not a page file`, { file, offset: 0 });
  }
  if (view.getBigUint64(24, true) !== checksum(bytes.subarray(0, 24))) {
    throw new PageFileError("checksum", `[kvcache] the first bytes of ${file} are damaged`, {
      file,
      offset: 0,
    });
  }
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    throw new PageFileError(
      "version",
      `[kvcache] ${file} has version ${version}; this package reads ${VERSION}: write the file anew`,
      { file, offset: 8, version },
    );
  }
  return { headerBytes: view.getUint32(12, true), headerChecksum: view.getBigUint64(16, true) };
}
/** Reads the header. Throws PageFileError when it is damaged or lacks a field. */
export function parseHeader(bytes: Uint8Array, { headerChecksum }: Prefix, file: string): PageFileHeader {
  if (checksum(bytes) !== headerChecksum) {
    throw new PageFileError("checksum", `[kvcache] the header of ${file} is damaged`, {
      file,
      offset: PREFIX_BYTES,
    });
  }
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    header = undefined;
  }
  if (isHeader(header)) return header;
  throw new PageFileError("header", `[kvcache] the header of ${file} lacks fields or has wrong ones`, {
    file,
    offset: PREFIX_BYTES,
  });
}
function isHeader(header: unknown): header is PageFileHeader {
  if (typeof header !== "object" || header === null) return false;
  const { layout, groups } = header as Partial<PageFileHeader>;
  if (typeof layout !== "string" || !Array.isArray(groups)) return false;
  const isCount = (n: unknown): boolean => Number.isSafeInteger(n) && (n as number) >= 0;
  return groups.every(
    (g: Partial<PageFileHeader["groups"][number]> | null) => isCount(g?.pages) && isCount(g?.pageBytes),
  );
}
/** Number of pages of all groups. */
export function countPages({ groups }: PageFileHeader): number {
  return groups.reduce((sum, g) => sum + g.pages, 0);
}
/** Bytes of the whole file behind its header. */
export function pagesBytes({ groups }: PageFileHeader): number {
  return groups.reduce((sum, g) => sum + g.pages * (CHECKSUM_BYTES + g.pageBytes), 0);
}
/** Bytes of the whole file. */
export function fileBytes(header: PageFileHeader): number {
  return PREFIX_BYTES + Buffer.byteLength(JSON.stringify(header)) + pagesBytes(header);
}
/** The group of the `index`-th page, and the offset of its checksum behind the header. */
export function placeOf(
  { groups }: PageFileHeader,
  index: number,
): { group: number; offset: number; bytes: number } {
  let first = 0;
  let offset = 0;
  for (let group = 0; group < groups.length; group++) {
    const { pages, pageBytes } = groups[group]!;
    if (index < first + pages)
      return { group, offset: offset + (index - first) * (CHECKSUM_BYTES + pageBytes), bytes: pageBytes };
    first += pages;
    offset += pages * (CHECKSUM_BYTES + pageBytes);
  }
  throw new RangeError(`page ${index} of ${first}`);
}
