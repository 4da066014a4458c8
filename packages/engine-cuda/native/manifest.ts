/** What prebuilt/<platform>/manifest.json says about the two libraries beside it, and the hashes that tie them to these sources. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The builds of one set of sources: for a device, and for a machine without one. */
export const BUILDS = ["cuda", "emulated"] as const;
export type Build = (typeof BUILDS)[number];

/** File name of a build's library. */
export const LIBRARIES: Readonly<Record<Build, string>> = {
  cuda: "libheed_cuda.so",
  emulated: "libheed_cuda_emulated.so",
};

/** What a library was built from, and what came out. */
export interface LibraryRecord {
  /** {@link sourceHash} of the sources it was built from. */
  readonly sourceHash: string;
  /** SHA-256 of the library itself. */
  readonly libraryHash: string;
  readonly bytes: number;
  /** The compilers' own words about their version, by name. */
  readonly compilers: Readonly<Record<string, string>>;
  /** Options of each compiler. */
  readonly flags: Readonly<Record<string, string>>;
  /** Newest glibc version a symbol of the library asks for, e.g. "2.17". */
  readonly glibc: string;
  /** Exported functions, sorted. */
  readonly symbols: readonly string[];
  /** Kernels in it, sorted. */
  readonly kernels: readonly string[];
}
/** What the assembler reports of a kernel on one architecture. */
export interface Resources {
  /** Registers of a thread. */
  readonly registers: number;
  /** Bytes of a thread's stack, of stores to spilled registers, of loads from them. */
  readonly stack: number;
  readonly spillStores: number;
  readonly spillLoads: number;
  /** Bytes of fixed shared memory of a block. */
  readonly shared: number;
}
/** Contents of manifest.json. */
export interface Manifest {
  /** HEED_CUDA_ABI_VERSION of abi/heed_cuda.h. */
  readonly abiVersion: number;
  readonly libraries: Readonly<Record<Build, LibraryRecord>>;
  /** Architectures with machine code, and the one with PTX for those to come. */
  readonly architectures: readonly string[];
  /** By kernel, then by architecture. */
  readonly resources: Readonly<Record<string, Readonly<Record<string, Resources>>>>;
}

const SOURCE = /\.(cc|h|cuh|cu|map)$/;
/** The parameter blocks that both engines' libraries share. */
const SHARED = ["../../engine-cpu/native/abi/heed_cpu.h"];
const EMULATED_ONLY = /^emulation\/|_emulated\.cc$/;
const CUDA_ONLY = /^device\/cuda\.h$|^runtime\/(driver|kernels_embedded|gemm_cublas)\.cc$/;

/** Paths of the files that a build is made from, relative to this folder, sorted; tests excluded. */
export function sourceFiles(build: Build): string[] {
  const other = build === "cuda" ? EMULATED_ONLY : CUDA_ONLY;
  return readdirSync(import.meta.dir, { recursive: true, encoding: "utf8" })
    .map((path) => path.replaceAll("\\", "/"))
    .filter((path) => SOURCE.test(path) && !path.startsWith("tests/") && !other.test(path))
    .concat(SHARED)
    .sort();
}

/** SHA-256 over path, length and contents of every file of {@link sourceFiles}. */
export function sourceHash(build: Build): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const path of sourceFiles(build)) {
    const contents = readFileSync(join(import.meta.dir, path));
    hash.update(`${path}\0${contents.length}\0`).update(contents);
  }
  return hash.digest("hex");
}

/** HEED_CUDA_ABI_VERSION as abi/heed_cuda.h has it. */
export function abiVersion(): number {
  const header = readFileSync(join(import.meta.dir, "abi/heed_cuda.h"), "utf8");
  return Number(/#define HEED_CUDA_ABI_VERSION (\d+)/.exec(header)![1]);
}
