/** Makes damaged libraries from a good one, without a compiler. */

/** Where a dynamic symbol's code lies in a 64-bit ELF file. */
function codeOf(file: DataView, name: string): number {
  const u64 = (at: number): number => Number(file.getBigUint64(at, true));
  const sections = u64(40);
  const section = (i: number) => {
    const at = sections + i * file.getUint16(58, true);
    return {
      type: file.getUint32(at + 4, true),
      offset: u64(at + 24),
      size: u64(at + 32),
      link: file.getUint32(at + 40, true),
    };
  };
  const count = file.getUint16(60, true);
  const dynsym = Array.from({ length: count }, (_, i) => section(i)).find((s) => s.type === 11)!;
  const names = section(dynsym.link).offset;
  const wanted = new TextEncoder().encode(`${name}\0`);
  for (let at = dynsym.offset; at < dynsym.offset + dynsym.size; at += 24) {
    const start = names + file.getUint32(at, true);
    if (wanted.every((byte, i) => file.getUint8(start + i) === byte)) return fileOffset(file, u64(at + 8));
  }
  throw new Error(`no symbol ${name}`);
}
/** The place in the file of an address: its PT_LOAD segment's. */
function fileOffset(file: DataView, address: number): number {
  const u64 = (at: number): number => Number(file.getBigUint64(at, true));
  for (let i = 0; i < file.getUint16(56, true); i++) {
    const at = u64(32) + i * file.getUint16(54, true);
    const into = address - u64(at + 16);
    if (file.getUint32(at, true) === 1 && into >= 0 && into < u64(at + 32)) return u64(at + 8) + into;
  }
  throw new Error(`address ${address} is in no segment`);
}
/** A copy whose heed_abi_version returns `version`: the operand of its `mov eax, imm32`. */
export function withAbiVersion(library: Uint8Array, version: number): Uint8Array {
  const copy = library.slice();
  const view = new DataView(copy.buffer);
  const code = codeOf(view, "heed_abi_version");
  const mov = copy.indexOf(0xb8, code);
  if (mov < 0 || mov > code + 8) throw new Error("heed_abi_version does not return a constant");
  view.setUint32(mov + 1, version, true);
  return copy;
}
/** A copy that has lost a symbol: its name is another. */
export function withoutSymbol(library: Uint8Array, name: string): Uint8Array {
  const copy = library.slice();
  const bytes = new TextEncoder().encode(`\0${name}\0`);
  const at = Buffer.from(copy.buffer).indexOf(bytes);
  copy[at + 1] = "X".charCodeAt(0);
  return copy;
}
