import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { abiVersion, sourceFiles, sourceHash, type Manifest } from "../native/manifest.ts";

const folder = join(import.meta.dir, "../prebuilt/linux-x64");
const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8")) as Manifest;

describe("the prebuilt library", () => {
  test("was built from the sources as they are (else: bun run build:native)", () => {
    expect(sourceFiles().length).toBeGreaterThan(10);
    expect(manifest.sourceHash).toBe(sourceHash());
  });
  test("is the file its manifest describes", () => {
    const library = readFileSync(join(folder, "libheed_cpu.so"));
    expect(library.length).toBe(manifest.bytes);
    expect(new Bun.CryptoHasher("sha256").update(library).digest("hex")).toBe(manifest.libraryHash);
  });
  test("has the ABI version of the header and every function it declares", () => {
    expect(manifest.abiVersion).toBe(abiVersion());
    const header = readFileSync(join(import.meta.dir, "../native/abi/heed_cpu.h"), "utf8");
    const declared = [...header.matchAll(/^[a-z].*?\*?\b(heed_\w+)\(/gm)].map((m) => m[1]!);
    expect(declared.length).toBeGreaterThan(20);
    expect([...manifest.symbols]).toEqual(declared.sort());
  });
  test("asks for no newer glibc than 2.17", () => {
    expect(Bun.semver.order(`${manifest.glibc}.0`, "2.17.0")).toBeLessThanOrEqual(0);
  });
});
