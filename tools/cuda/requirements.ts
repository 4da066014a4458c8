/** What the CUDA engine's libraries may and may not contain. */
import { GLIBC_CEILING, inspect, type Requirement } from "../native/elf.ts";

/** glibc alone: the driver is opened at run time, the C++ library is linked in. */
const NEEDED = new Set(["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"]);
/** Each of the two libraries, at most: the CUDA library is what its users install, the emulated one serves tests and learners. */
export const BYTES_CEILING: number = 8_000_000;

const newer = (symbol: string): boolean => {
  const version = /@+GLIBC_(\d+)\.(\d+)/.exec(symbol);
  const [, ceiling] = GLIBC_CEILING.split(".").map(Number);
  return version !== null && (Number(version[1]) > 2 || Number(version[2]) > ceiling!);
};

/** Every requirement on one freshly built library. */
export function requirements(library: string): Requirement[] {
  const found = inspect(library);
  return [
    {
      name: "exports heed_cuda_* functions only",
      against: found.exported.filter((symbol) => !symbol.startsWith("heed_cuda_")),
    },
    {
      name: "needs libc, libm, libdl and pthreads only",
      against: found.needed.filter((name) => !NEEDED.has(name)),
    },
    {
      name: "every import is a versioned glibc symbol",
      against: found.imported.filter((symbol) => !/@+GLIBC_/.test(symbol)),
    },
    { name: `asks for glibc ${GLIBC_CEILING} at most`, against: found.imported.filter(newer) },
    { name: "no executable stack", against: found.executableStack ? ["GNU_STACK is RWE"] : [] },
  ];
}
