/** Compilers of the CUDA engine's two libraries and their options. */
import { join } from "node:path";
import { capture, compiler, ROOT } from "../native/toolchain.ts";

/** The sources. */
export const NATIVE: string = join(ROOT, "packages/engine-cuda/native");
/** Where objects are kept by the hash of what they were made from; ignored by git. */
export const BUILD: string = join(ROOT, "build/cuda");

/**
 * Machine code for Ampere (Ada runs it too), Hopper with its own instructions, both Blackwells; PTX that the driver compiles for what is
 * to come. PTX of compute_90a would not run on anything newer.
 */
export const ARCHITECTURES: readonly (readonly [virtual: string, real: string])[] = [
  ["compute_80", "sm_80"],
  ["compute_90a", "sm_90a"],
  ["compute_100", "sm_100"],
  ["compute_120", "sm_120"],
  ["compute_80", "compute_80"],
];
const CPP = [
  "-std=c++17",
  "-O2",
  "-fPIC",
  "-g0",
  "-Wall",
  "-Wextra",
  "-march=x86-64-v2",
  "-fvisibility=hidden",
  "-ffunction-sections",
  `-ffile-prefix-map=${ROOT}/=`,
  `-I${NATIVE}`,
  "-include",
  join(NATIVE, "runtime/glibc.h"),
];
/** Options by kind of source. Without -Werror for kernels: what a warning means there is for their author to judge. */
export const FLAGS: Readonly<Record<"nvcc" | "kernel" | "runtime", readonly string[]>> = {
  nvcc: [
    "-std=c++17",
    "-O3",
    "-fatbin",
    "-compress-mode=size",
    "-Xptxas",
    "-v",
    ...ARCHITECTURES.map(([virtual, real]) => `-gencode=arch=${virtual},code=${real}`),
  ],
  kernel: [...CPP, "-DHEED_EMULATION", "-Wno-psabi", "-fno-trapping-math", "-fno-math-errno"],
  runtime: [...CPP, "-Werror"],
};

/** Flags as a manifest records them: without the machine's paths. */
export const recorded = (flags: readonly string[]): string =>
  flags.filter((flag) => !flag.includes(ROOT) && flag !== "-include").join(" ");

/** nvcc, or undefined where there is none: $NVCC, the PATH, $CUDA_HOME/bin. */
export function nvcc(): string | undefined {
  const { NVCC, CUDA_HOME } = process.env;
  if (NVCC) return Bun.which(NVCC) ?? undefined;
  return Bun.which("nvcc") ?? (CUDA_HOME ? (Bun.which(join(CUDA_HOME, "bin/nvcc")) ?? undefined) : undefined);
}
/** The host compiler; throws with words when there is none. */
export const host: () => string = compiler;

/** The line in which a compiler tells its version. */
export function version(program: string): string {
  const lines = capture([program, "--version"], "asking the compiler for its version").split("\n");
  return (lines.find((line) => /release/.test(line)) ?? lines[0]!).trim();
}
