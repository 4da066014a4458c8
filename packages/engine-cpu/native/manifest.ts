/** What prebuilt/<platform>/manifest.json says about the library beside it, and the hash that ties both to these sources. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Contents of manifest.json. */
export interface Manifest {
  /** {@link sourceHash} of the sources it was built from. */
  readonly sourceHash: string;
  /** SHA-256 of the library itself. */
  readonly libraryHash: string;
  /** Size of the library. */
  readonly bytes: number;
  /** HEED_ABI_VERSION of abi/heed_cpu.h. */
  readonly abiVersion: number;
  /** The compiler's own first line about itself. */
  readonly compiler: string;
  /** Compiler options by instruction set level; `runtime` for what is compiled once. */
  readonly flags: Readonly<Record<string, string>>;
  /** Newest glibc version a symbol of the library asks for, e.g. "2.17". */
  readonly glibc: string;
  /** Exported functions, sorted. */
  readonly symbols: readonly string[];
}

const SOURCE = /(\.(cc|h|map)|CMakeLists\.txt)$/;

/** Paths of the files the library is built from, relative to this folder, sorted; tests excluded. */
export function sourceFiles(): string[] {
  return readdirSync(import.meta.dir, { recursive: true, encoding: "utf8" })
    .map((path) => path.replaceAll("\\", "/"))
    .filter((path) => SOURCE.test(path) && !path.startsWith("tests/"))
    .sort();
}

/** SHA-256 over path, length and contents of every file of {@link sourceFiles}. */
export function sourceHash(): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const path of sourceFiles()) {
    const contents = readFileSync(join(import.meta.dir, path));
    hash.update(`${path}\0${contents.length}\0`).update(contents);
  }
  return hash.digest("hex");
}

/** HEED_ABI_VERSION as abi/heed_cpu.h has it. */
export function abiVersion(): number {
  const header = readFileSync(join(import.meta.dir, "abi/heed_cpu.h"), "utf8");
  return Number(/#define HEED_ABI_VERSION (\d+)/.exec(header)![1]);
}
