/**
 * Builds libheed_cpu from source and puts it, with its manifest, where the engine loads it from: `bun run build:native`.
 * Writes nothing when the library breaks a requirement of native/elf.ts.
 */
import { copyFileSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { abiVersion, sourceHash, type Manifest } from "../packages/engine-cpu/native/manifest.ts";
import { inspect, requirements } from "./native/elf.ts";
import { build, capture, compiler, flags, LIBRARY, ROOT } from "./native/toolchain.ts";

export { sourceHash };

async function manifestOf(library: string, hash: string): Promise<Manifest> {
  const contents = readFileSync(library);
  const { exported, glibc } = inspect(library);
  return {
    sourceHash: hash,
    libraryHash: new Bun.CryptoHasher("sha256").update(contents).digest("hex"),
    bytes: contents.length,
    abiVersion: abiVersion(),
    compiler: capture([compiler(), "--version"], "asking the compiler for its version").split("\n")[0]!,
    flags: await flags(),
    glibc,
    symbols: exported,
  };
}

async function main(): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new Error(
      `the native library is for linux-x64; this is ${process.platform}-${process.arch}, where the portable engine runs`,
    );
  }
  const hash = sourceHash();
  build({ tests: false });
  const broken = requirements(LIBRARY).filter((r) => r.against.length > 0);
  if (broken.length > 0) {
    throw new Error(`not written: ${broken.map((r) => `${r.name}: ${r.against.join(", ")}`).join("\n")}`);
  }
  if (hash !== sourceHash())
    throw new Error("not written: the sources changed while they were compiled; build again");
  const folder = join(ROOT, "packages/engine-cpu/prebuilt/linux-x64");
  mkdirSync(folder, { recursive: true });
  const manifest = await manifestOf(LIBRARY, hash);
  // Renamed into place: overwriting the file would end every process that has it mapped, with a bus error.
  const fresh = join(folder, "libheed_cpu.so.new");
  copyFileSync(LIBRARY, fresh);
  renameSync(fresh, join(folder, "libheed_cpu.so"));
  await Bun.write(join(folder, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  console.log(
    `built libheed_cpu.so: ${manifest.bytes} bytes, ${manifest.symbols.length} functions, glibc ${manifest.glibc}`,
  );
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
