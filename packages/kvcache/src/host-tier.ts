import { OutOfMemoryError } from "@heed/tensor";
import { checksum } from "./checksum.ts";
import { PageFileError } from "./errors.ts";
import { type PageSource, requirePageSize, type TransferOptions } from "./page-file-write.ts";
import { countPages, type PageFileHeader, pagesBytes } from "./page-format.ts";
import { requireWhole } from "./state.ts";
import { type PageSink, requireNewKey, type Tier, type TierStats } from "./tiers.ts";

interface Entry {
  readonly header: string;
  readonly pages: readonly Uint8Array[];
  readonly sums: readonly bigint[];
  readonly bytes: number;
}

/** A {@link Tier} in memory of the host, apart from any engine's, with a limit of its own. */
export class HostTier implements Tier {
  readonly #maxBytes: number;
  readonly #entries = new Map<string, Entry>();
  #bytes = 0;
  /** Throws ArgumentError. */
  constructor({ maxBytes }: { readonly maxBytes: number }) {
    requireWhole(maxBytes, 1, Number.MAX_SAFE_INTEGER, "maxBytes of a tier");
    this.#maxBytes = maxBytes;
  }
  async put(key: string, source: PageSource, options: TransferOptions = {}): Promise<void> {
    requireNewKey(key, this.#entries);
    const { header } = source;
    const bytes = pagesBytes(header);
    requireSpace(bytes, this.stats());
    const pages: Uint8Array[] = [];
    const sums: bigint[] = [];
    let done = 0;
    for (let index = 0; index < countPages(header); index++) {
      options.signal?.throwIfAborted();
      const page = source.page(index);
      const copy = (page instanceof Promise ? await page : page).slice(); // of pages on the host nothing happens meanwhile
      requirePageSize(header, index, copy.length);
      pages.push(copy);
      sums.push(checksum(copy, index));
      options.onProgress?.((done += copy.length), bytes);
    }
    requireNewKey(key, this.#entries);
    requireSpace(bytes, this.stats());
    this.#entries.set(key, { header: JSON.stringify(header), pages, sums, bytes });
    this.#bytes += bytes;
  }
  async take(
    key: string,
    header: PageFileHeader,
    sink: PageSink,
    options: TransferOptions = {},
  ): Promise<void> {
    const entry = this.#entries.get(key);
    if (entry === undefined || entry.header !== JSON.stringify(header)) throw missing(key);
    let done = 0;
    for (let index = 0; index < entry.pages.length; index++) {
      options.signal?.throwIfAborted();
      const page = entry.pages[index]!;
      if (checksum(page, index) !== entry.sums[index]) {
        throw new PageFileError("checksum", `[kvcache] page ${index} of "${key}" is damaged`, {
          file: key,
          page: index,
        });
      }
      sink(index, page);
      options.onProgress?.((done += page.length), entry.bytes);
    }
    await this.drop(key);
  }
  async drop(key: string): Promise<void> {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#entries.delete(key);
    this.#bytes -= entry.bytes;
  }
  stats(): TierStats {
    return { entries: this.#entries.size, bytes: this.#bytes, maxBytes: this.#maxBytes };
  }
}
/** What a tier throws when it has no such entry. */
export function missing(key: string): PageFileError {
  return new PageFileError("header", `[kvcache] the tier has no such entry as "${key}" was when it was put`, {
    file: key,
  });
}
/** Throws OutOfMemoryError when so many more bytes do not fit. */
export function requireSpace(needed: number, { bytes, maxBytes }: TierStats): void {
  if (bytes + needed <= maxBytes) return;
  throw new OutOfMemoryError(
    `[kvcache] ${needed} bytes do not fit into the tier, which holds ${bytes} of ${maxBytes}; drop entries, or give it more`,
    { needed, bytes, maxBytes },
  );
}
