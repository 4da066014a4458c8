import { join } from "node:path";
import { asPageFileError } from "./errors.ts";
import { type FileCalls, systemCalls } from "./file-calls.ts";
import { missing, requireSpace } from "./host-tier.ts";
import { openPageFile, readPages } from "./page-file.ts";
import { cleanLeftovers, type PageSource, type TransferOptions, writePageFile } from "./page-file-write.ts";
import { fileBytes, type PageFileHeader } from "./page-format.ts";
import { requireWhole } from "./state.ts";
import { type PageSink, requireKey, requireNewKey, type Tier, type TierStats } from "./tiers.ts";

const SUFFIX = ".heedpages";

/**
 * A {@link Tier} in a folder, a page file for each entry. What earlier processes left there counts against the limit until it is dropped;
 * temporary files that their writers have not touched for an hour are removed when the folder is opened.
 */
export class FolderTier implements Tier {
  readonly path: string;
  readonly #maxBytes: number;
  readonly #calls: FileCalls;
  readonly #entries: Map<string, number>; // bytes, those of entries under way included
  /** For {@link FolderTier.open}. */
  private constructor(path: string, maxBytes: number, calls: FileCalls, entries: Map<string, number>) {
    this.path = path;
    this.#maxBytes = maxBytes;
    this.#calls = calls;
    this.#entries = entries;
  }
  /** Opens a folder, making it if need be. Rejects with ArgumentError, PageFileError. */
  static async open(
    path: string,
    { maxBytes }: { readonly maxBytes: number },
    calls: FileCalls = systemCalls,
  ): Promise<FolderTier> {
    requireWhole(maxBytes, 1, Number.MAX_SAFE_INTEGER, "maxBytes of a tier");
    const entries = new Map<string, number>();
    try {
      await calls.mkdir(path, { recursive: true });
      await cleanLeftovers(path, calls);
      for (const name of await calls.readdir(path)) {
        if (name.endsWith(SUFFIX))
          entries.set(name.slice(0, -SUFFIX.length), (await calls.stat(join(path, name))).size);
      }
    } catch (error) {
      throw asPageFileError(error, path, "open the folder");
    }
    return new FolderTier(path, maxBytes, calls, entries);
  }
  /** Keys of the entries, those under way included. */
  get keys(): readonly string[] {
    return [...this.#entries.keys()];
  }
  async put(key: string, source: PageSource, options: TransferOptions = {}): Promise<void> {
    requireNewKey(key, this.#entries);
    const bytes = fileBytes(source.header);
    requireSpace(bytes, this.stats());
    this.#entries.set(key, bytes); // two that are put at once must fit together
    try {
      await writePageFile(this.#file(key), source, options, this.#calls);
    } catch (error) {
      await this.drop(key).catch(() => undefined); // a last sync may have failed behind the rename
      throw error;
    }
  }
  async take(
    key: string,
    header: PageFileHeader,
    sink: PageSink,
    options: TransferOptions = {},
  ): Promise<void> {
    requireKey(key);
    const expected = { layout: header.layout, pageBytes: header.groups.map((g) => g.pageBytes) };
    {
      await using file = await openPageFile(this.#file(key), expected, this.#calls);
      if (JSON.stringify(file.header) !== JSON.stringify(header)) throw missing(key);
      await readPages(file, sink, options);
    }
    await this.drop(key).catch(() => undefined); // the pages are where they belong; the file counts until it goes
  }
  async drop(key: string): Promise<void> {
    requireKey(key);
    try {
      await this.#calls.rm(this.#file(key), { force: true });
    } catch (error) {
      throw asPageFileError(error, this.#file(key), "remove");
    }
    this.#entries.delete(key);
  }
  stats(): TierStats {
    let bytes = 0;
    for (const size of this.#entries.values()) bytes += size;
    return { entries: this.#entries.size, bytes, maxBytes: this.#maxBytes };
  }
  #file(key: string): string {
    return join(this.path, key + SUFFIX);
  }
}
