import { closeSync, fstatSync, openSync, readSync } from "node:fs";

const X86_64 = 62;
const AARCH64 = 183;
const MACHINE: Readonly<Partial<Record<NodeJS.Architecture, number>>> = { x64: X86_64, arm64: AARCH64 };

/**
 * Why a file cannot be loaded as a 64-bit ELF library of this processor, or undefined. A truncated library must be caught before it
 * is opened: the dynamic linker maps its segments and dies of a bus error at the first page past the end. (System V ABI, chapter 4.)
 */
export function elfDefect(path: string): string | undefined {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    return `it cannot be read (${(error as Error).message})`;
  }
  try {
    const size = fstatSync(file).size;
    const at = (offset: number, bytes: number): DataView | undefined => {
      const view = new DataView(new ArrayBuffer(bytes));
      return readSync(file, view, 0, bytes, offset) === bytes ? view : undefined;
    };
    const header = at(0, 64);
    if (header?.getUint32(0) !== 0x7f454c46) return "it is not an ELF library";
    if (header.getUint8(4) !== 2 || header.getUint16(18, true) !== MACHINE[process.arch]) {
      return `it is for another processor than ${process.arch}`;
    }
    const entryBytes = header.getUint16(54, true);
    const entries = at(Number(header.getBigUint64(32, true)), entryBytes * header.getUint16(56, true));
    if (entries === undefined) return `it is truncated to ${size} bytes`;
    for (let i = 0; i + 56 <= entries.byteLength; i += entryBytes) {
      const end = Number(entries.getBigUint64(i + 8, true) + entries.getBigUint64(i + 32, true));
      if (end > size) return `it is truncated: ${size} bytes, where a segment ends at ${end}`;
    }
    return undefined;
  } catch (error) {
    return `it cannot be read (${(error as Error).message})`; // a directory, say
  } finally {
    closeSync(file);
  }
}
