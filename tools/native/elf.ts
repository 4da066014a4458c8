/** What the library may and may not contain, read with nm and readelf (binutils). */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { BUILD, capture } from "./toolchain.ts";

/** The newest glibc that the library may ask for: that of RHEL 7 and of every distribution since. */
export const GLIBC_CEILING = "2.17";
const NEEDED = new Set(["libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"]);
const LEVELS = ["v2", "v3", "v4"] as const;

/** Dynamic symbols and dependencies of a shared library. */
export interface Symbols {
  readonly exported: readonly string[];
  /** As `name@VERSION`; weak ones, which may stay unresolved, excluded. */
  readonly imported: readonly string[];
  readonly needed: readonly string[];
  readonly glibc: string;
  readonly executableStack: boolean;
}
const byVersion = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });
const binutils = (command: readonly string[]): string =>
  capture(command, "install binutils to inspect the native library");

/** Reads the dynamic section and symbol table of `library`. */
export function inspect(library: string): Symbols {
  const exported: string[] = [];
  const imported: string[] = [];
  for (const line of binutils(["nm", "-D", library]).split("\n")) {
    const [, kind, name] = /([A-Za-z]) (\S+)$/.exec(line) ?? [];
    if (kind === "U") imported.push(name!);
    else if (kind !== undefined && kind !== "w") exported.push(name!);
  }
  const headers = binutils(["readelf", "-W", "-d", "-l", "-V", library]);
  const versions = [...headers.matchAll(/GLIBC_(\d+(?:\.\d+)*)/g)].map((m) => m[1]!);
  return {
    exported: exported.sort(),
    imported: imported.sort(),
    needed: [...headers.matchAll(/\(NEEDED\).*\[(.+)\]/g)].map((m) => m[1]!),
    glibc: versions.sort(byVersion).at(-1) ?? "none",
    executableStack: /GNU_STACK.*\bRWE\b/.test(headers),
  };
}

/** Inline functions that two levels both define: the linker keeps one copy, perhaps with instructions this processor lacks. */
export function sharedInlines(): string[] {
  const owners = new Map<string, Set<string>>();
  for (const level of [...LEVELS.map((l) => `kernels_${l}`), "heed_cpu"]) {
    const folder = join(BUILD, `CMakeFiles/${level}.dir`);
    const objects = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((f) =>
      f.endsWith(".o"),
    );
    for (const line of binutils(["nm", ...objects.map((f) => join(folder, f))]).split("\n")) {
      const name = /[0-9a-f] [WVu] (\S+)$/.exec(line)?.[1];
      if (name !== undefined) owners.set(name, (owners.get(name) ?? new Set()).add(level));
    }
  }
  return [...owners].filter(([, levels]) => levels.size > 1).map(([name]) => name);
}

/** One requirement on the library and the findings against it; empty when it holds. */
export interface Requirement {
  readonly name: string;
  readonly against: readonly string[];
}
/** Every requirement on the freshly built `library`. */
export function requirements(library: string): Requirement[] {
  const found = inspect(library);
  const libc = /@(@)?GLIBC_/;
  return [
    { name: "exports heed_* functions only", against: found.exported.filter((s) => !s.startsWith("heed_")) },
    { name: "needs libc, libm and pthreads only", against: found.needed.filter((n) => !NEEDED.has(n)) },
    {
      name: "every import is a versioned glibc symbol",
      against: found.imported.filter((s) => !libc.test(s)),
    },
    {
      name: `asks for glibc ${GLIBC_CEILING} at most`,
      against: found.imported.filter(
        (s) => byVersion(/GLIBC_([\d.]+)/.exec(s)?.[1] ?? "0", GLIBC_CEILING) > 0,
      ),
    },
    { name: "no executable stack", against: found.executableStack ? ["GNU_STACK is RWE"] : [] },
    { name: "no inline function shared between instruction sets", against: sharedInlines() },
  ];
}
