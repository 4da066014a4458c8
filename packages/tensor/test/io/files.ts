import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Bytes of a safetensors file with any header, valid or not. */
export function fileOf(header: unknown, data: ArrayLike<number> = [], padding = 0): Uint8Array<ArrayBuffer> {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  return fileOfBytes(new TextEncoder().encode(text + " ".repeat(padding)), data);
}
/** The same from the header's bytes. */
export function fileOfBytes(header: Uint8Array, data: ArrayLike<number> = []): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8 + header.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
  bytes.set(header, 8);
  bytes.set(data, 8 + header.length);
  return bytes;
}
/** A folder that is removed when it is disposed. */
export function temporaryFolder(): { readonly path: (name: string) => string; [Symbol.dispose](): void } {
  const folder = mkdtempSync(join(tmpdir(), "heed-"));
  return {
    path: (name) => join(folder, name),
    [Symbol.dispose]: () => rmSync(folder, { recursive: true }),
  };
}
