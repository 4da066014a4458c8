import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { DTYPES } from "../core/dtype.ts";
import { ArgumentError, FormatError } from "../core/errors.ts";
import type { Shape } from "../core/shape.ts";
import { show, type Tensor } from "../core/tensor.ts";
import { FORMAT_OF, HEADER_BYTES } from "./safetensors-header.ts";

/** Name to tensor, as a Map or a plain object. */
export type NamedTensors = ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>;

/** Header bytes and the tensors in the order of the file: by falling element size, so that each stays aligned, then by name. */
function layOut(
  tensors: NamedTensors,
  metadata: Readonly<Record<string, string>>,
): { header: Uint8Array; order: [string, Tensor][] } {
  for (const [name, value] of Object.entries(metadata)) {
    if (typeof value === "string") continue;
    throw new ArgumentError(
      `[safetensors] metadata must map names to strings; "${name}" is ${typeof value}`,
      { name },
    );
  }
  const order = [...(tensors instanceof Map ? tensors : Object.entries(tensors))] as [string, Tensor][];
  const width = (t: Tensor): number => DTYPES[t.dtype].bytes;
  order.sort(([a, x], [b, y]) => width(y) - width(x) || (a < b ? -1 : a > b ? 1 : 0));
  const fields: [string, unknown][] = Object.keys(metadata).length > 0 ? [["__metadata__", metadata]] : [];
  let at = 0;
  for (const [name, t] of order) {
    t.check();
    if (name === "__metadata__")
      throw new ArgumentError("[safetensors] a tensor cannot be named __metadata__", { name });
    const end = at + t.size * width(t);
    const shape: Shape = t.shape;
    fields.push([name, { dtype: FORMAT_OF[t.dtype], shape, data_offsets: [at, end] }]);
    at = end;
  }
  const json = new TextEncoder().encode(
    `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(",")}}`,
  );
  const header = new Uint8Array(HEADER_BYTES + Math.ceil(json.length / 8) * 8).fill(0x20); // spaces keep the data 8-byte aligned
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - HEADER_BYTES), true);
  header.set(json, HEADER_BYTES);
  return { header, order };
}
/**
 * Writes tensors to a safetensors file: into a temporary file beside it, synced, then renamed, so that a reader or a crash sees the
 * old file or the new one. Throws ArgumentError, DisposedError and the system's own errors; then the old file is untouched.
 */
export async function writeSafetensors(
  path: string,
  tensors: NamedTensors,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { header, order } = layOut(tensors, metadata);
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  const file = await open(temporary, "wx");
  try {
    try {
      await file.writeFile(header);
      for (const [name, t] of order) {
        const values = await t.read();
        if (values.length !== t.size)
          throw new FormatError(`[safetensors] "${name}" ${show(t)} changed while it was written`, { name });
        await file.writeFile(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      }
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  const folder = await open(dirname(path), "r");
  try {
    await folder.sync(); // the rename itself
  } finally {
    await folder.close();
  }
}
