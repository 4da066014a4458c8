/** A page file gives back what was written, or an error that says what is wrong with it. */
import { expect, test, describe } from "bun:test";
import fc from "fast-check";
import { readdirSync, readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checksum } from "../src/checksum.ts";
import { PageFileError } from "../src/errors.ts";
import { type ExpectedPages, openPageFile, readPages } from "../src/page-file.ts";
import { cleanLeftovers, type PageSource, writePageFile } from "../src/page-file-write.ts";
import { fileBytes, type PageFileHeader } from "../src/page-format.ts";
import { type FileCalls, type OpenFile, systemCalls } from "../src/file-calls.ts";
import { faultyCalls, temporaryFolder } from "./file-faults.ts";

const LAYOUT = "[[layout]]";
/** `pages[g]` pages of `sizes[g]` bytes in each group, with bytes made from `seed`. */
function source(pages: readonly number[], sizes: readonly number[], seed = 1): PageSource {
  const groups = pages.map((n, g) => ({ pages: n, pageBytes: sizes[g]! }));
  const all = groups.flatMap((g) => new Array<number>(g.pages).fill(g.pageBytes));
  const header: PageFileHeader = { layout: LAYOUT, groups, content: { seed } };
  return {
    header,
    page: (i) =>
      Uint8Array.from({ length: all[i]! }, (_, b) => Math.imul(b + i * 977 + seed, 0x9e3779b1) >>> 24),
  };
}
function expecting(sizes: readonly number[]): ExpectedPages {
  return { layout: LAYOUT, pageBytes: sizes };
}
/** All of a file: its header and its pages. */
async function readAll(
  path: string,
  sizes: readonly number[],
): Promise<{ header: unknown; pages: number[][] }> {
  await using file = await openPageFile(path, expecting(sizes));
  const pages: number[][] = [];
  await readPages(file, (_, bytes) => pages.push([...bytes]), {});
  return { header: file.header, pages };
}
async function contentsOf({ header, page }: PageSource): Promise<{ header: unknown; pages: number[][] }> {
  const count = header.groups.reduce((sum, g) => sum + g.pages, 0);
  return {
    header,
    pages: await Promise.all(Array.from({ length: count }, async (_, i) => [...(await page(i))])),
  };
}
/** The error that reading a file ends with. */
async function failure(path: string, sizes: readonly number[]): Promise<PageFileError> {
  const error = await readAll(path, sizes).then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(PageFileError);
  return error as PageFileError;
}
/** A file whose first bytes and header are whole but say something else. */
function forge(path: string, header: unknown, { version = 1, headerBytes = -1, behind = 0 } = {}): void {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(32 + json.length + behind);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode("heedpage"));
  view.setUint32(8, version, true);
  view.setUint32(12, headerBytes < 0 ? json.length : headerBytes, true);
  view.setBigUint64(16, checksum(json), true);
  view.setBigUint64(24, checksum(bytes.subarray(0, 24)), true);
  bytes.set(json, 32);
  writeFileSync(path, bytes);
}

test("the checksum is the 64-bit xxHash3, and its seed counts", () => {
  expect(checksum(new Uint8Array(0))).toBe(0x2d06800538d394c2n); // XXH3_64bits of nothing, from the reference implementation
  expect(checksum(new Uint8Array(8), 1)).not.toBe(checksum(new Uint8Array(8), 2));
});
describe("a page file", () => {
  test("gives back header and pages, whatever their number and size, and has the size it says", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const group = fc.record({
      pages: fc.integer({ min: 0, max: 5 }),
      bytes: fc.integer({ min: 1, max: 3000 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(group, { maxLength: 3 }), fc.nat(), async (groups, seed) => {
        const sizes = groups.map((g) => g.bytes);
        const written = source(
          groups.map((g) => g.pages),
          sizes,
          seed,
        );
        await writePageFile(path, written);
        expect(statSync(path).size).toBe(fileBytes(written.header));
        expect(await readAll(path, sizes)).toEqual(await contentsOf(written));
      }),
      { numRuns: 60 },
    );
  }, 60_000);
  test("larger than a chunk is written piece by piece, with progress up to the whole", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const written = source([3], [900_001]);
    const seen: number[] = [];
    const total = fileBytes(written.header);
    await writePageFile(path, written, {
      onProgress: (done, of) => (expect(of).toBe(total), seen.push(done)),
    });
    expect(seen).toEqual([2 ** 20, 2 ** 21, total]);
    expect((await readAll(path, [900_001])).pages).toEqual((await contentsOf(written)).pages);
  });
  test("cut off anywhere is an error that names the file and the place", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const written = source([2, 1], [70, 40]);
    const size = fileBytes(written.header);
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: size - 1 }), async (length) => {
        await writePageFile(path, written);
        truncateSync(path, length);
        const error = await failure(path, [70, 40]);
        expect(error).toMatchObject({ code: "HEED_PAGE_FILE", reason: "truncated", details: { file: path } });
      }),
      { numRuns: 120 },
    );
  }, 60_000);
  test("with any bit flipped is an error, never wrong bytes", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    await writePageFile(path, source([2, 1], [70, 40]));
    const good = new Uint8Array(readFileSync(path));
    for (let bit = 0; bit < good.length * 8; bit++) {
      const bad = good.slice();
      bad[bit >> 3]! ^= 1 << (bit & 7);
      writeFileSync(path, bad);
      await failure(path, [70, 40]);
    }
  });
  test("whose page is damaged says which one, and gives the others", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const written = source([3], [50]);
    await writePageFile(path, written);
    const bytes = new Uint8Array(readFileSync(path));
    const at = bytes.length - 2 * 58; // of page 1's checksum
    bytes[at + 30]! ^= 4;
    writeFileSync(path, bytes);
    await using file = await openPageFile(path, expecting([50]));
    await expect(file.read(1)).rejects.toMatchObject({
      reason: "checksum",
      details: { file: path, page: 1, offset: at },
    });
    expect([...(await file.read(2))]).toEqual([...(await written.page(2))]);
  });
  test("whose pages have changed places, or come from another file, is damaged", async () => {
    using folder = temporaryFolder();
    const [a, b] = [join(folder.path, "a"), join(folder.path, "b")];
    await writePageFile(a, source([2], [50], 1));
    await writePageFile(b, source([2], [50], 2));
    const [first, second] = [readFileSync(a), readFileSync(b)];
    const at = first.length - 58;
    const swapped = Buffer.concat([
      first.subarray(0, at - 58),
      first.subarray(at),
      first.subarray(at - 58, at),
    ]);
    writeFileSync(a, swapped);
    expect((await failure(a, [50])).reason).toBe("checksum");
    writeFileSync(a, Buffer.concat([first.subarray(0, at), second.subarray(at)]));
    expect((await failure(a, [50])).reason).toBe("checksum");
  });
  test("of another version, layout or page size is refused by that name", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const { header } = source([0], [50]);
    forge(path, header, { version: 2 });
    expect((await failure(path, [50])).reason).toBe("version");
    forge(path, { ...header, layout: "other" });
    expect((await failure(path, [50])).reason).toBe("layout");
    forge(path, header);
    expect((await failure(path, [51])).reason).toBe("layout");
    expect((await failure(path, [50, 50])).reason).toBe("layout");
  });
  test("with a forged header is refused before memory for it is asked for", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const { header } = source([0], [50]);
    forge(path, header, { headerBytes: 2 ** 32 - 1 });
    expect((await failure(path, [50])).reason).toBe("truncated");
    const asked: number[] = [];
    const open: FileCalls["open"] = async (name, flags) => {
      const file = await systemCalls.open(name, flags);
      const read: OpenFile["read"] = (bytes, ...rest) => (
        asked.push(bytes.buffer.byteLength),
        file.read(bytes, ...rest)
      );
      return { read, write: file.write.bind(file), sync: () => file.sync(), close: () => file.close() };
    };
    await openPageFile(path, expecting([50]), { ...systemCalls, open }).catch(() => undefined);
    expect(asked).toEqual([32]);
    forge(path, header, { behind: 1 });
    expect((await failure(path, [50])).reason).toBe("header");
    for (const pages of [2 ** 52, 1e9, 1]) {
      forge(path, { ...header, groups: [{ pages, pageBytes: 50 }] });
      expect((await failure(path, [50])).reason).toBe("truncated");
    }
    for (const wrong of [
      null,
      3,
      [],
      {},
      { layout: LAYOUT },
      { layout: LAYOUT, groups: [null] },
      { layout: LAYOUT, groups: [{ pages: -1, pageBytes: 50 }] },
      { layout: 1, groups: [] },
    ]) {
      forge(path, wrong);
      expect((await failure(path, [50])).reason).toBe("header");
    }
  });
  test("that is no file, or is not there, is an error with the system's cause", async () => {
    using folder = temporaryFolder();
    expect((await failure(folder.path, [50])).reason).toBe("header");
    const error = await failure(join(folder.path, "none"), [50]);
    expect(error).toMatchObject({ reason: "io", details: { code: "ENOENT" } });
    expect(error.cause).toBeInstanceOf(Error);
  });
});
describe("writing over a file", () => {
  test("that is stopped by its signal or by a failing page leaves the old one and nothing beside it", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const old = source([2], [60], 1);
    await writePageFile(path, old);
    const stop = new AbortController();
    const next = source([3], [2 ** 20], 2);
    const options = { signal: stop.signal, onProgress: () => stop.abort(new Error("enough")) };
    await expect(writePageFile(path, next, options)).rejects.toThrow("enough");
    const bad: PageSource = { ...next, page: () => new Uint8Array(3) };
    expect(await writePageFile(path, bad).catch((e: Error) => e.message)).toContain("has 3 bytes");
    expect(readdirSync(folder.path)).toEqual(["a"]);
    expect(await readAll(path, [60])).toEqual(await contentsOf(old));
  });
  for (const kind of ["once", "crash"] as const) {
    test(`gives the old or the new, at each call that can fail (${kind})`, async () => {
      using folder = temporaryFolder();
      const path = join(folder.path, "a");
      const [old, next] = [source([2], [600], 1), source([2], [600], 2)];
      const seen = { old: 0, new: 0 };
      const faults = faultyCalls(500);
      for (let n = 1; ; n++) {
        await writePageFile(path, old);
        faults.arm(n, kind);
        const error = await writePageFile(path, next, {}, faults.calls).then(
          () => undefined,
          (e: unknown) => e,
        );
        if (!faults.fired()) break;
        const is = await readAll(path, [600]);
        const isOld = Bun.deepEquals(is, await contentsOf(old));
        seen[isOld ? "old" : "new"]++;
        expect(error).toMatchObject({ code: "HEED_PAGE_FILE", reason: "io", details: { code: "ENOSPC" } });
        if (!isOld) expect(is).toEqual(await contentsOf(next));
        if (kind === "once") expect(readdirSync(folder.path)).toEqual(["a"]);
      }
      // open, three writes, sync, close, rename leave the old; opening, syncing and closing the folder come behind the rename.
      expect(seen).toEqual({ old: 7, new: 3 });
    }, 60_000);
  }
  test("syncs the file before it is renamed and the folder after", async () => {
    using folder = temporaryFolder();
    const { calls, log } = faultyCalls();
    await writePageFile(join(folder.path, "a"), source([1], [9]), {}, calls);
    expect(log).toEqual(["open", "write", "sync", "close", "rename", "open", "sync", "close"]);
  });
  test("stores all when writes store little at a time", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "a");
    const written = source([2], [60]);
    await writePageFile(path, written, {}, faultyCalls(7).calls);
    expect(await readAll(path, [60])).toEqual(await contentsOf(written));
  });
});
test("leftovers of writers that died are removed after an hour, and nothing else", async () => {
  using folder = temporaryFolder();
  const names = [
    ".a.01234567-89ab-cdef-0123-456789abcdef.tmp",
    ".b.01234567-89ab-cdef-0123-456789abcdef.tmp",
    ".c.tmp",
    "d",
  ];
  for (const name of names) writeFileSync(join(folder.path, name), "x");
  const longAgo = Date.now() / 1000 - 3700;
  for (const name of [names[0]!, names[2]!, names[3]!]) utimesSync(join(folder.path, name), longAgo, longAgo);
  await cleanLeftovers(folder.path);
  expect(readdirSync(folder.path).sort()).toEqual(names.slice(1).sort());
  await cleanLeftovers(join(folder.path, "none"));
});
