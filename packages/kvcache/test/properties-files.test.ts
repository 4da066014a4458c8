/** Properties of files and tiers that no other test states. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FolderTier, HostTier, type KvCache, type PageSource } from "../src/index.ts";
import { temporaryFolder } from "./file-faults.ts";
import { append, idsFrom, poisonedCache } from "./fixtures.ts";

const BLOCK = 4;
const cacheOf = (): KvCache => poisonedCache({ layers: 1, pageSize: BLOCK, maxPages: 8, prefixes: true });
function found(cache: KvCache, ids: readonly number[]): number {
  using match = cache.match(ids);
  return match.length;
}

test.each([0, 1, 2])(
  "a damaged page %d of a chain of 3 loses its block and those behind it, which are found nowhere else",
  async (page) => {
    using folder = temporaryFolder();
    const path = join(folder.path, "prefixes");
    using from = cacheOf();
    const ids = idsFrom(0, 3 * BLOCK);
    append(from, [[from.open(), ids]]);
    expect(await from.savePrefixes(path)).toBe(3);
    const bytes = readFileSync(path);
    const record = 8 + from.stats().pageBytes / 9; // a checksum, and one of 8 pages and the null page
    bytes[bytes.length - 1 - (2 - page) * record]! ^= 1;
    writeFileSync(path, bytes);
    using to = cacheOf();
    expect(await to.loadPrefixes(path)).toEqual({ loaded: page, known: 0, damaged: 3 - page, skipped: 0 });
    expect(found(to, [...ids, 1])).toBe(page * BLOCK);
    for (let b = Math.max(page, 1); b < 3; b++) expect(found(to, [...ids.slice(b * BLOCK), 1])).toBe(0);
    to.check();
  },
);

test.each(["host", "folder"] as const)(
  "a store into a %s tier that fails at any page, or is stopped, leaves no entry",
  async (kind) => {
    using folder = temporaryFolder();
    const maxBytes = 10_000;
    const tier =
      kind === "host" ? new HostTier({ maxBytes }) : await FolderTier.open(folder.path, { maxBytes });
    const header = { layout: "x", groups: [{ pages: 3, pageBytes: 8 }], content: 0 };
    const empty = tier.stats();
    const stop = new AbortController();
    for (let bad = 0; bad < 3; bad++) {
      const failing: PageSource = {
        header,
        page(index) {
          if (index === bad) throw new Error("no page");
          return new Uint8Array(8).fill(index);
        },
      };
      const given: number[] = [];
      await expect(tier.put("a", failing)).rejects.toThrow("no page");
      await expect(tier.take("a", header, (index) => given.push(index))).rejects.toThrow();
      expect([given, tier.stats(), readdirSync(folder.path)]).toEqual([[], empty, []]);
    }
    stop.abort(new Error("stopped"));
    const good = { header, page: (): Uint8Array => new Uint8Array(8).fill(7) };
    await expect(tier.put("a", good, { signal: stop.signal })).rejects.toThrow("stopped");
    expect([tier.stats(), readdirSync(folder.path)]).toEqual([empty, []]);
    await tier.put("a", good); // the key is free
    const pages: number[][] = [];
    await tier.take("a", header, (_, bytes) => pages.push([...bytes]));
    expect(pages).toEqual(new Array(3).fill(new Array(8).fill(7)));
  },
);
