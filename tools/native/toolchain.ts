/** Configuring and building libheed_cpu with CMake; needs cmake, a C++20 compiler, and ninja or make. */
import { join } from "node:path";

/** The repository's root. */
export const ROOT: string = join(import.meta.dir, "../..");
const NATIVE = join(ROOT, "packages/engine-cpu/native");
/** Where it is built; ignored by git. */
export const BUILD: string = join(ROOT, "build/native");
/** The library of the last build. */
export const LIBRARY: string = join(BUILD, "libheed_cpu.so");

/** Standard output of a command. Throws with its error output and the words `why` when it fails or is not there. */
export function capture(command: readonly string[], why: string): string {
  if (Bun.which(command[0]!) === null) throw new Error(`${command[0]} is not on the PATH: ${why}`);
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command]);
  if (exitCode !== 0)
    throw new Error(`${command.join(" ")} failed with code ${exitCode} (${why})\n${stdout}${stderr}`);
  return stdout.toString();
}

/** The C++ compiler: $CXX, else the first of c++, g++ and clang++ there is. Throws with words when there is none. */
export function compiler(): string {
  const wanted = process.env["CXX"];
  const found = (wanted ? [wanted] : ["c++", "g++", "clang++"]).find((name) => Bun.which(name) !== null);
  if (found === undefined) {
    throw new Error(
      `no C++ compiler (${wanted ?? "c++, g++, clang++"}) on the PATH: install GCC 12 or Clang 16, or set CXX`,
    );
  }
  return found;
}

/** Configures and builds the library, with `tests` the native test programs too. Throws with the compiler's words. */
export function build(options: { readonly tests: boolean }): void {
  if (Bun.which("cmake") === null)
    throw new Error("cmake is not on the PATH: install CMake 3.20 or newer to build the native library");
  const generator =
    Bun.which("ninja") !== null ? "Ninja" : Bun.which("make") !== null ? "Unix Makefiles" : undefined;
  if (generator === undefined)
    throw new Error("neither ninja nor make is on the PATH: install one to build the native library");
  const configure = [
    "cmake",
    "-G",
    generator,
    "-S",
    NATIVE,
    "-B",
    BUILD,
    `-DCMAKE_CXX_COMPILER=${compiler()}`,
    "-DCMAKE_BUILD_TYPE=Release",
  ];
  capture(configure, "configuring the native library");
  const target = options.tests ? [] : ["--target", "heed_cpu"];
  capture(
    ["cmake", "--build", BUILD, "--parallel", String(navigator.hardwareConcurrency), ...target],
    "compiling the native library",
  );
}

/** Compiler options by level (v2, v3, v4) and for the runtime, as the build used them. */
export async function flags(): Promise<Record<string, string>> {
  interface Entry {
    readonly command: string;
  }
  const entries = (await Bun.file(join(BUILD, "compile_commands.json")).json()) as readonly Entry[];
  const found: Record<string, string> = {};
  for (const { command } of entries) {
    const level =
      /-DHEED_ISA=(\w+)/.exec(command)?.[1] ?? (command.includes("abi/abi.cc") ? "runtime" : undefined);
    if (level === undefined) continue;
    const options = command
      .split(" ")
      .filter((word) => word.startsWith("-") && !/^-(o|c|include|ffile-prefix-map.*|D.*)$/.test(word));
    found[level] ??= options.join(" ");
  }
  return Object.fromEntries(Object.entries(found).sort());
}
