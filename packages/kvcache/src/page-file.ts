import { checksum, pageSeed } from "./checksum.ts";
import { asPageFileError, PageFileError } from "./errors.ts";
import { type FileCalls, type OpenFile, systemCalls } from "./file-calls.ts";
import {
  CHECKSUM_BYTES,
  countPages,
  MAX_HEADER_BYTES,
  type PageFileHeader,
  pagesBytes,
  parseHeader,
  parsePrefix,
  placeOf,
  PREFIX_BYTES,
} from "./page-format.ts";
import type { TransferOptions } from "./page-file-write.ts";

/** What a reader expects of a file. */
export interface ExpectedPages {
  readonly layout: string;
  /** Bytes of a page of each group. */
  readonly pageBytes: readonly number[];
}

/** An open page file whose header and size have been checked; each page is checked as it is read. */
export class PageFile {
  readonly path: string;
  readonly header: PageFileHeader;
  /** Number of pages of all groups. */
  readonly pages: number;
  readonly #file: OpenFile;
  readonly #start: number;
  readonly #headerChecksum: bigint;
  #buffer = new Uint8Array(0);
  /** For {@link openPageFile}. */
  constructor(path: string, file: OpenFile, header: PageFileHeader, start: number, headerChecksum: bigint) {
    this.path = path;
    this.header = header;
    this.pages = countPages(header);
    this.#file = file;
    this.#start = start;
    this.#headerChecksum = headerChecksum;
  }
  /** The bytes of a page, good until the next read. Rejects with PageFileError when they are damaged or gone. */
  async read(index: number): Promise<Uint8Array> {
    const { offset, bytes } = placeOf(this.header, index);
    const size = CHECKSUM_BYTES + bytes;
    if (this.#buffer.length < size) this.#buffer = new Uint8Array(size);
    const record = this.#buffer.subarray(0, size);
    const at = this.#start + offset;
    await fill(this.#file, record, at, this.path, index);
    const page = record.subarray(CHECKSUM_BYTES);
    const expected = new DataView(record.buffer).getBigUint64(0, true);
    if (checksum(page, pageSeed(this.#headerChecksum, index)) === expected) return page;
    throw new PageFileError(
      "checksum",
      `[kvcache] page ${index} of ${this.path}, at byte ${at}, is damaged`,
      {
        file: this.path,
        page: index,
        offset: at,
      },
    );
  }
  /** Closes the file. Never rejects: it was only read, so that a close that fails loses nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close().catch(() => undefined);
  }
}
/** Reads until `bytes` is full. */
async function fill(
  file: OpenFile,
  bytes: Uint8Array,
  position: number,
  path: string,
  page?: number,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    let bytesRead: number;
    try {
      ({ bytesRead } = await file.read(bytes, at, bytes.length - at, position + at));
    } catch (error) {
      throw asPageFileError(error, path, "read");
    }
    if (bytesRead === 0) throw truncated(path, position + at, page);
    at += bytesRead;
  }
}
function truncated(file: string, offset: number, page?: number): PageFileError {
  return new PageFileError("truncated", `[kvcache] ${file} ends at byte ${offset}, before its pages do`, {
    file,
    offset,
    page,
  });
}
async function readHead(
  file: OpenFile,
  path: string,
  size: number,
  expected: ExpectedPages,
): Promise<PageFile> {
  if (size < PREFIX_BYTES) throw truncated(path, size);
  const first = new Uint8Array(PREFIX_BYTES);
  await fill(file, first, 0, path);
  const prefix = parsePrefix(first, path);
  if (prefix.headerBytes > MAX_HEADER_BYTES || PREFIX_BYTES + prefix.headerBytes > size)
    throw truncated(path, size);
  const json = new Uint8Array(prefix.headerBytes);
  await fill(file, json, PREFIX_BYTES, path);
  const header = parseHeader(json, prefix, path);
  requireLayout(header, expected, path);
  const start = PREFIX_BYTES + prefix.headerBytes;
  const end = start + pagesBytes(header);
  if (size < end) throw truncated(path, size);
  if (size > end) {
    throw new PageFileError("header", `[kvcache] ${path} has ${size - end} bytes behind its last page`, {
      file: path,
      offset: end,
    });
  }
  return new PageFile(path, file, header, start, prefix.headerChecksum);
}
function requireLayout({ layout, groups }: PageFileHeader, expected: ExpectedPages, file: string): void {
  const fits =
    groups.length === expected.pageBytes.length &&
    groups.every((g, n) => g.pageBytes === expected.pageBytes[n]);
  if (layout === expected.layout && fits) return;
  throw new PageFileError(
    "layout",
    `[kvcache] the pages of ${file} are of another cache's layout: ${layout}; this one has ${expected.layout}`,
    { file, offset: PREFIX_BYTES, layout, expected: expected.layout },
  );
}
/**
 * Opens a page file and checks its first bytes, its header against `expected`, and its size. Rejects with PageFileError, whose details
 * have reason, file, and page and offset where they are known.
 */
export async function openPageFile(
  path: string,
  expected: ExpectedPages,
  calls: FileCalls = systemCalls,
): Promise<PageFile> {
  let file: OpenFile | undefined;
  try {
    const status = await calls.stat(path); // before opening: a pipe would wait for its writer
    if (!status.isFile())
      throw new PageFileError("header", `[kvcache] ${path} is not a regular file`, { file: path });
    file = await calls.open(path, "r");
    return await readHead(file, path, status.size, expected);
  } catch (error) {
    await file?.close().catch(() => undefined);
    throw asPageFileError(error, path, "read");
  }
}
/** Gives every page to `sink`, one after the other. Rejects with PageFileError, what `sink` throws, or the signal's reason. */
export async function readPages(
  file: PageFile,
  sink: (index: number, bytes: Uint8Array) => void,
  { signal, onProgress }: TransferOptions,
): Promise<void> {
  const total = pagesBytes(file.header);
  let done = 0;
  for (let index = 0; index < file.pages; index++) {
    signal?.throwIfAborted();
    const page = await file.read(index);
    sink(index, page);
    onProgress?.((done += CHECKSUM_BYTES + page.length), total);
  }
}
