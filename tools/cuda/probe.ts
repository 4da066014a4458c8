/** Asking a built library about itself, in a process of its own: a library once loaded stays. */
import { capture } from "../native/toolchain.ts";

const SCRIPT = `
const { dlopen } = require("bun:ffi");
const { symbols } = dlopen(process.argv[1], {
  heed_cuda_abi_version: { args: [], returns: "i32" },
  heed_cuda_kernels: { args: [], returns: "cstring" },
});
console.log(String(symbols.heed_cuda_kernels()));
`;

/** Names of the kernels in the library at `path`, sorted. Throws when it does not load. */
export function kernelsOf(path: string): string[] {
  const text = capture([process.execPath, "-e", SCRIPT, path], "loading the library that was built");
  return text.trim() === "" ? [] : text.trim().split("\n");
}
