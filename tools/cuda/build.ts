/** Compiling and linking the two libraries of the CUDA engine. */
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Build } from "../../packages/engine-cuda/native/manifest.ts";
import { LIBRARIES } from "../../packages/engine-cuda/native/manifest.ts";
import { capture } from "../native/toolchain.ts";
import { embedded, GENERATED, kernelTable, layouts, type Module } from "./generate.ts";
import { compileAll, tryAll, type Compiled, type Job } from "./objects.ts";
import { kernelNames, readResources, type KernelResources } from "./resources.ts";
import { BUILD, FLAGS, host, NATIVE, nvcc } from "./toolchain.ts";

const EMULATED = /_emulated\.cc$/;
/** Host sources that only the library for a device has. */
const DEVICE = new Set(["driver.cc", "kernels_embedded.cc", "gemm_cublas.cc"]);

/** Files below a folder of the sources that end in `extension`, sorted. */
function below(folder: string, extension: string): string[] {
  return readdirSync(join(NATIVE, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(extension))
    .sort()
    .map((file) => join(NATIVE, folder, file));
}
/** The files of kernels. */
export const kernelSources = (): string[] => below("kernels", ".cu");

/** Compiles one C++ source of the runtime, the emulation or a test. */
export const cpp = (source: string, also = "", flags: readonly string[] = FLAGS.runtime): Job => ({
  source,
  command: [host(), ...flags, `-I${GENERATED}`, "-c", "-x", "c++"],
  kind: "host",
  extension: ".o",
  also,
});
/** Sources of the emulation. */
export const emulationSources = (): string[] => below("emulation", ".cc");
/** The emulation itself, or of a file of kernels. */
const emulated = (source: string): Job => ({ ...cpp(source, "", FLAGS.kernel), kind: "emulated" });
const fatbin = (compiler: string, source: string): Job => ({
  source,
  command: [compiler, ...FLAGS.nvcc],
  kind: "fatbin",
  extension: ".fatbin",
});

/** The check of the runtime's declarations against the toolkit's cuda.h. */
const driverTypes = (compiler: string): Job => ({
  source: join(NATIVE, "tests/driver_types.cc"),
  command: [compiler, "-std=c++17", "-x", "c++", "-c"],
  kind: "tests",
  extension: ".o",
});

/** Runtime sources of a build. */
export function runtimeSources(build: Build): string[] {
  const mine = below("runtime", ".cc").filter((path) => {
    const name = path.slice(path.lastIndexOf("/") + 1);
    return build === "cuda" ? !EMULATED.test(name) : !DEVICE.has(name);
  });
  return mine;
}
/** The sources of the layout tables. */
export const layoutJobs = (): Job[] => {
  const text = layouts();
  return below("abi", ".cc").map((source) => cpp(source, text));
};

/** Links objects into the library of a build, in the build folder, under a name of this process. Returns its path. */
function link(build: Build, objects: readonly string[]): string {
  mkdirSync(BUILD, { recursive: true });
  const library = join(BUILD, `${process.pid}-${LIBRARIES[build]}`);
  const options = [
    "-shared",
    "-static-libstdc++",
    "-static-libgcc",
    "-pthread",
    "-Wl,-z,defs",
    "-Wl,-z,now",
    "-Wl,-z,noexecstack",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    `-Wl,--version-script=${join(NATIVE, "abi/exports.map")}`,
    "-s",
  ];
  capture([host(), ...options, "-o", library, ...objects, "-ldl", "-lm"], `linking ${LIBRARIES[build]}`);
  return library;
}
const objectsOf = (compiled: readonly Compiled[]): string[] => compiled.map(({ object }) => object);

/** A library and what its kernels need; `resources` is empty in the emulation. */
export interface Built {
  readonly library: string;
  readonly resources: readonly KernelResources[];
  /** What the compiler said about the files of kernels that were left out. */
  readonly leftOut: readonly string[];
}
/** Compiles kernels. With `partial` those files that do not compile are left out instead of failing the build. */
async function compileKernels(jobs: readonly Job[], partial: boolean): ReturnType<typeof tryAll> {
  return partial ? tryAll(jobs) : { compiled: await compileAll(jobs), errors: [] };
}
/** Builds the library for machines without a device. */
export async function buildEmulated(partial: boolean): Promise<Built> {
  const sources = [...runtimeSources("emulated").map((source) => cpp(source)), ...layoutJobs()];
  const rest = await compileAll([...emulationSources().map(emulated), ...sources]);
  const kernels = await compileKernels(kernelSources().map(emulated), partial);
  const library = link("emulated", objectsOf([...kernels.compiled, ...rest]));
  return { library, resources: [], leftOut: kernels.errors };
}
/** Builds the library for a device. Throws with words when there is no nvcc. */
export async function buildCuda(partial: boolean): Promise<Built> {
  const compiler = nvcc();
  if (compiler === undefined)
    throw new Error(
      "nvcc is not on the PATH: install the CUDA toolkit 13.0, or set NVCC or CUDA_HOME; --emulated-only does without",
    );
  await compileAll([driverTypes(compiler)]);
  const kernels = await compileKernels(
    kernelSources().map((source) => fatbin(compiler, source)),
    partial,
  );
  const resources = kernels.compiled.map(({ log }) => readResources(log));
  const modules: Module[] = kernels.compiled.map(({ object }, i) => ({
    fatbin: object,
    kernels: kernelNames(resources[i]!),
  }));
  const table = kernelTable(modules);
  const jobs = [...runtimeSources("cuda").map((source) => cpp(source, table)), ...layoutJobs()];
  const compiled = await compileAll(jobs);
  const object = join(BUILD, "modules.o");
  capture([host(), "-c", "-o", object, embedded(modules)], "embedding the kernels");
  const library = link("cuda", [...objectsOf(compiled), object]);
  return { library, resources: resources.flat(), leftOut: kernels.errors };
}
