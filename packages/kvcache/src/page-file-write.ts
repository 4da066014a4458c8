import { randomUUID } from "node:crypto";
import { basename, dirname, join } from "node:path";
import { ArgumentError } from "@heed/tensor";
import { checksum, pageSeed } from "./checksum.ts";
import { asPageFileError, PageFileError } from "./errors.ts";
import { type FileCalls, type OpenFile, systemCalls } from "./file-calls.ts";
import {
  CHECKSUM_BYTES,
  countPages,
  encodeHeader,
  type PageFileHeader,
  pagesBytes,
  placeOf,
} from "./page-format.ts";

/** How a transfer of pages can be followed and stopped. */
export interface TransferOptions {
  /** Stops the transfer, which then rejects with the signal's reason and leaves everything as it was. */
  readonly signal?: AbortSignal | undefined;
  /** Called after each chunk with the bytes done and those of the whole. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}
/** Pages to be stored: what they are, and the bytes of each when its turn comes, which a device takes its time to send. */
export interface PageSource {
  readonly header: PageFileHeader;
  page(index: number): Uint8Array | Promise<Uint8Array>;
}
const CHUNK_BYTES = 2 ** 20; // a system call's cost vanishes beside copying as much
const STALE_MS = 3_600_000; // a writer that has not written for an hour is no more
const TEMPORARY = /^\..+\.[0-9a-f-]{36}\.tmp$/;

/** Collects bytes and writes them in chunks, one after the other. */
class ChunkWriter {
  readonly #file: OpenFile;
  readonly #path: string;
  readonly #options: TransferOptions;
  readonly #total: number;
  readonly #chunk = new Uint8Array(CHUNK_BYTES);
  #filled = 0;
  #written = 0;
  constructor(file: OpenFile, path: string, total: number, options: TransferOptions) {
    this.#file = file;
    this.#path = path;
    this.#total = total;
    this.#options = options;
  }
  async add(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + CHUNK_BYTES - this.#filled);
      this.#chunk.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === CHUNK_BYTES) await this.flush();
    }
  }
  async flush(): Promise<void> {
    this.#options.signal?.throwIfAborted();
    for (let at = 0; at < this.#filled;) {
      const { bytesWritten } = await this.#file.write(this.#chunk, at, this.#filled - at, this.#written);
      if (bytesWritten < 1)
        throw new PageFileError("io", `[kvcache] a write to ${this.#path} stored nothing`, {
          file: this.#path,
        });
      at += bytesWritten;
      this.#written += bytesWritten;
    }
    this.#filled = 0;
    this.#options.onProgress?.(this.#written, this.#total);
  }
}
async function writeAll(
  file: OpenFile,
  path: string,
  source: PageSource,
  options: TransferOptions,
): Promise<void> {
  const { header } = source;
  const { bytes, headerChecksum } = encodeHeader(header, path);
  const out = new ChunkWriter(file, path, bytes.length + pagesBytes(header), options);
  await out.add(bytes);
  const sum = new Uint8Array(CHECKSUM_BYTES);
  const view = new DataView(sum.buffer);
  for (let index = 0; index < countPages(header); index++) {
    const page = await source.page(index);
    requirePageSize(header, index, page.length);
    view.setBigUint64(0, checksum(page, pageSeed(headerChecksum, index)), true);
    await out.add(sum);
    await out.add(page);
  }
  await out.flush();
  await file.sync();
}
/** Throws ArgumentError unless a page has as many bytes as the header says. */
export function requirePageSize(header: PageFileHeader, page: number, bytes: number): void {
  const { bytes: expected } = placeOf(header, page);
  if (bytes === expected) return;
  throw new ArgumentError(`[kvcache] page ${page} has ${bytes} bytes, not ${expected}`, {
    page,
    bytes,
    expected,
  });
}
async function syncFolder(folder: string, calls: FileCalls): Promise<void> {
  const handle = await calls.open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
/**
 * Writes a page file: into a temporary file beside it, synced, then renamed, so that a reader or a crash sees the old file or the new
 * one. Memory of one chunk and one page is used. Rejects with PageFileError (reason "io" with the system's error as its cause), what
 * `source.page` throws, or the signal's reason; then the old file is untouched, unless only the last sync of the folder has failed: then
 * the new one is in its place but may be lost with the power.
 */
export async function writePageFile(
  path: string,
  source: PageSource,
  options: TransferOptions = {},
  calls: FileCalls = systemCalls,
): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  try {
    options.signal?.throwIfAborted();
    const file = await calls.open(temporary, "wx");
    try {
      await writeAll(file, path, source, options);
    } finally {
      await file.close();
    }
    await calls.rename(temporary, path);
  } catch (error) {
    await calls.rm(temporary, { force: true }).catch(() => undefined); // a leftover is cleaned later
    throw asPageFileError(error, path, "write");
  }
  await syncFolder(dirname(path), calls).catch((error: unknown) => {
    throw asPageFileError(error, path, "sync the folder of");
  });
}
/** Removes what writers that died have left in a folder. Never rejects: what cannot be removed stays. */
export async function cleanLeftovers(folder: string, calls: FileCalls = systemCalls): Promise<void> {
  const names = await calls.readdir(folder).catch(() => []);
  for (const name of names) {
    if (!TEMPORARY.test(name)) continue;
    const path = join(folder, name);
    const age = await calls.stat(path).then(
      (s) => Date.now() - s.mtimeMs,
      () => 0,
    );
    if (age > STALE_MS) await calls.rm(path, { force: true }).catch(() => undefined);
  }
}
