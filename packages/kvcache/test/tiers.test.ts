/** What holds of every tier, and of folders besides. */
import { ArgumentError, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FolderTier, HostTier, PageFileError, type PageSource, type Tier } from "../src/index.ts";
import { faultyCalls, temporaryFolder } from "./file-faults.ts";

/** Three pages of 10 bytes, all in one buffer: of the i-th, each byte is value + i. */
const source = (value: number): PageSource => {
  const bytes = new Uint8Array(10);
  return {
    header: { layout: "x", groups: [{ pages: 3, pageBytes: 10 }], content: value },
    page: (i) => bytes.fill(value + i),
  };
};
const rejection = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => undefined,
    (e: unknown) => e,
  );
async function pagesOf(tier: Tier, key: string, value: number): Promise<number[][]> {
  const pages: number[][] = [];
  await tier.take(key, source(value).header, (index, bytes) => (pages[index] = [...bytes]));
  return pages;
}
const three = (value: number): number[][] => [0, 1, 2].map((i) => new Array<number>(10).fill(value + i));

for (const kind of ["host", "folder"] as const) {
  const open = async (path: string, maxBytes: number): Promise<Tier> =>
    kind === "host" ? new HostTier({ maxBytes }) : FolderTier.open(path, { maxBytes });
  describe(`a ${kind} tier`, () => {
    test("gives back what was put, once, and forgets what is dropped", async () => {
      using folder = temporaryFolder();
      const tier = await open(folder.path, 10_000);
      await tier.put("a", source(1));
      await tier.put("b", source(2));
      const { bytes } = tier.stats();
      expect(await pagesOf(tier, "a", 1)).toEqual(three(1));
      expect(tier.stats()).toEqual({ entries: 1, bytes: bytes / 2, maxBytes: 10_000 });
      expect(await rejection(pagesOf(tier, "a", 1))).toBeInstanceOf(PageFileError);
      await tier.drop("b");
      await tier.drop("b");
      expect(tier.stats()).toEqual({ entries: 0, bytes: 0, maxBytes: 10_000 });
    });
    test("keeps an entry whose taker fails or asks for another one", async () => {
      using folder = temporaryFolder();
      const tier = await open(folder.path, 10_000);
      await tier.put("a", source(1));
      const fail = (): never => {
        throw new Error("taker");
      };
      expect(await rejection(tier.take("a", source(1).header, fail))).toMatchObject({ message: "taker" });
      expect(await rejection(pagesOf(tier, "a", 2))).toMatchObject({
        code: "HEED_PAGE_FILE",
        reason: "header",
      });
      expect(await pagesOf(tier, "a", 1)).toEqual(three(1));
    });
    test("refuses a key in use, one that is no name, and what does not fit, and stays as it was", async () => {
      using folder = temporaryFolder();
      const tier = await open(folder.path, 200);
      await tier.put("a", source(1));
      const before = tier.stats();
      for (const key of ["a", "", "../b", "a/b", "a".repeat(129), "."])
        expect(await rejection(tier.put(key, source(2)))).toBeInstanceOf(ArgumentError);
      expect(
        await rejection(
          tier.put("c", {
            ...source(2),
            header: { ...source(2).header, groups: [{ pages: 30, pageBytes: 10 }] },
          }),
        ),
      ).toBeInstanceOf(OutOfMemoryError);
      expect(tier.stats()).toEqual(before);
      expect(await pagesOf(tier, "a", 1)).toEqual(three(1));
      expect(await rejection(open(folder.path, 0))).toBeInstanceOf(ArgumentError);
    });
    test("counts two that are put at once against its limit", async () => {
      using folder = temporaryFolder();
      const tier = await open(folder.path, 200);
      const both = await Promise.all(["a", "b"].map((key) => rejection(tier.put(key, source(1)))));
      expect(both.map((e) => e instanceof OutOfMemoryError)).toEqual(
        kind === "host" ? [false, false] : [false, true],
      );
    });
  });
}
test("a host tier notices pages that somebody has written over", async () => {
  const tier = new HostTier({ maxBytes: 1000 });
  await tier.put("a", source(1));
  const spoil = (_: number, bytes: Uint8Array): never => {
    bytes[3] = 99;
    throw new Error("taker");
  };
  expect(await rejection(tier.take("a", source(1).header, spoil))).toMatchObject({ message: "taker" });
  expect(await rejection(pagesOf(tier, "a", 1))).toMatchObject({
    reason: "checksum",
    details: { file: "a", page: 0 },
  });
});
test("a folder's entries count for whoever opens it next, and can be dropped; other files do not", async () => {
  using folder = temporaryFolder();
  const first = await FolderTier.open(folder.path, { maxBytes: 1000 });
  await first.put("a", source(1));
  writeFileSync(join(folder.path, "notes"), "x");
  const second = await FolderTier.open(folder.path, { maxBytes: 1000 });
  expect([second.keys, second.stats()]).toEqual([["a"], first.stats()]);
  await second.drop("a");
  expect(readdirSync(folder.path)).toEqual(["notes"]);
});
test("a folder that cannot be opened, and a file that cannot be removed, are errors with the system's code", async () => {
  using folder = temporaryFolder();
  writeFileSync(join(folder.path, "file"), "x");
  expect(await rejection(FolderTier.open(join(folder.path, "file"), { maxBytes: 9 }))).toMatchObject({
    reason: "io",
    details: { code: "EEXIST" },
  });
  const faults = faultyCalls();
  const tier = await FolderTier.open(folder.path, { maxBytes: 1000 }, faults.calls);
  await tier.put("a", source(1));
  faults.arm(1);
  expect(await rejection(tier.drop("a"))).toMatchObject({ reason: "io", details: { code: "ENOSPC" } });
  expect(tier.stats().entries).toBe(1);
});
