/**
 * Builds the CUDA engine's libraries from source and puts them, with their manifest, where the engine loads them from:
 * `bun run build:cuda`, with `--emulated-only` the one that needs no nvcc. Writes nothing when a library breaks a requirement. With
 * `--partial`, while kernels are being written, files that do not compile are left out; the manifest then belongs to no sources.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
  abiVersion,
  BUILDS,
  LIBRARIES,
  sourceHash,
  type Build,
  type LibraryRecord,
  type Manifest,
} from "../packages/engine-cuda/native/manifest.ts";
import { buildCuda, buildEmulated, type Built } from "./cuda/build.ts";
import { kernelsOf } from "./cuda/probe.ts";
import { requirements } from "./cuda/requirements.ts";
import { byKernel } from "./cuda/resources.ts";
import { ARCHITECTURES, FLAGS, host, nvcc, recorded, version } from "./cuda/toolchain.ts";
import { inspect } from "./native/elf.ts";
import { ROOT } from "./native/toolchain.ts";

const FOLDER = join(ROOT, "packages/engine-cuda/prebuilt/linux-x64");
const MANIFEST = join(FOLDER, "manifest.json");

const sha256 = (contents: Uint8Array): string =>
  new Bun.CryptoHasher("sha256").update(contents).digest("hex");

function record(build: Build, library: string, hash: string): LibraryRecord {
  const contents = readFileSync(library);
  const { exported, glibc } = inspect(library);
  const cuda = build === "cuda";
  return {
    sourceHash: hash,
    libraryHash: sha256(contents),
    bytes: contents.length,
    compilers: { host: version(host()), ...(cuda ? { nvcc: version(nvcc()!) } : {}) },
    flags: {
      host: recorded(FLAGS.runtime),
      ...(cuda ? { nvcc: recorded(FLAGS.nvcc) } : { kernels: recorded(FLAGS.kernel) }),
    },
    glibc,
    symbols: exported,
    kernels: kernelsOf(library),
  };
}

/** Builds one library and checks it. Throws when it breaks a requirement, or its sources changed meanwhile. */
async function make(
  build: Build,
  partial: boolean,
): Promise<{ readonly built: Built; readonly record: LibraryRecord }> {
  const hash = sourceHash(build);
  const built = await (build === "cuda" ? buildCuda(partial) : buildEmulated(partial));
  const broken = requirements(built.library).filter(({ against }) => against.length > 0);
  if (broken.length > 0)
    throw new Error(
      `not written: ${broken.map(({ name, against }) => `${name}: ${against.join(", ")}`).join("\n")}`,
    );
  if (!partial && hash !== sourceHash(build))
    throw new Error("not written: the sources changed while they were compiled; build again");
  for (const words of built.leftOut) console.warn(`left out: ${words.split("\n").slice(0, 12).join("\n")}`);
  return { built, record: record(build, built.library, partial ? "partial" : hash) };
}

/** Renamed into place: overwriting the file would end every process that has it mapped, with a bus error. */
function place(library: string, build: Build): void {
  const fresh = join(FOLDER, `${LIBRARIES[build]}.new`);
  copyFileSync(library, fresh);
  rmSync(library);
  renameSync(fresh, join(FOLDER, LIBRARIES[build]));
}

async function main(): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64")
    throw new Error(`the CUDA engine is for linux-x64; this is ${process.platform}-${process.arch}`);
  const wanted = process.argv.includes("--emulated-only") ? (["emulated"] as const) : BUILDS;
  mkdirSync(FOLDER, { recursive: true });
  for (const build of wanted) {
    const made = await make(build, process.argv.includes("--partial"));
    const before = existsSync(MANIFEST)
      ? (JSON.parse(readFileSync(MANIFEST, "utf8")) as Manifest)
      : undefined;
    const manifest = {
      abiVersion: abiVersion(),
      architectures: ARCHITECTURES.map(([, real]) => real),
      libraries: { ...before?.libraries, [build]: made.record },
      resources: build === "cuda" ? byKernel(made.built.resources) : (before?.resources ?? {}),
    };
    place(made.built.library, build);
    await Bun.write(MANIFEST, `${JSON.stringify(manifest, null, 2)}\n`);
    const { bytes, kernels, glibc } = made.record;
    console.log(`built ${LIBRARIES[build]}: ${bytes} bytes, ${kernels.length} kernels, glibc ${glibc}`);
  }
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
