import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { abiVersion, BUILDS, LIBRARIES, sourceFiles, sourceHash, type Manifest } from "../native/manifest.ts";

const folder = join(import.meta.dir, "../prebuilt/linux-x64");
const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8")) as Manifest;

describe.each([...BUILDS])("the prebuilt library, %s", (build) => {
  const record = manifest.libraries[build];

  test("was built from the sources as they are (else: bun run build:cuda)", () => {
    expect(sourceFiles(build).length).toBeGreaterThan(20);
    expect(record.sourceHash).toBe(sourceHash(build));
  });
  test("is the file its manifest describes", () => {
    const library = readFileSync(join(folder, LIBRARIES[build]));
    expect(library.length).toBe(record.bytes);
    expect(new Bun.CryptoHasher("sha256").update(library).digest("hex")).toBe(record.libraryHash);
  });
  test("has every function that the header declares", () => {
    const header = readFileSync(join(import.meta.dir, "../native/abi/heed_cuda.h"), "utf8");
    const declared = [...header.matchAll(/^[a-z].*?\*?\b(heed_cuda_\w+)\(/gm)].map((m) => m[1]!);
    expect(declared.length).toBeGreaterThan(25);
    expect([...record.symbols]).toEqual(declared.sort());
  });
  test("asks for no newer glibc than 2.17", () => {
    expect(Bun.semver.order(`${record.glibc}.0`, "2.17.0")).toBeLessThanOrEqual(0);
  });
  test("has every kernel that the sources declare", () => {
    const kernels = sourceFiles(build)
      .filter((path) => path.endsWith(".cu"))
      .map((path) => readFileSync(join(import.meta.dir, "../native", path), "utf8"));
    expect(kernels.length).toBeGreaterThan(5);
    expect([...record.kernels]).toEqual([...manifest.libraries.cuda.kernels]);
    for (const text of kernels)
      for (const [, name] of text.matchAll(/HEED_KERNEL(?:_BLOCKS)?\((heed_cuda_\w+),/g))
        if (!name!.endsWith("_")) expect(record.kernels).toContain(name!);
  });
});

describe("both prebuilt libraries", () => {
  test.each([...BUILDS])("take less than 8 MB each: %s", (build) => {
    expect(manifest.libraries[build].bytes).toBeLessThan(8_000_000);
  });
  test("have the ABI version of the header", () => {
    expect(manifest.abiVersion).toBe(abiVersion());
  });
});
