import { randomUUID } from "node:crypto";
import { statSync } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { DTYPES, type DType } from "../core/dtype.ts";
import { ArgumentError, DisposedError, DTypeError, FormatError } from "../core/errors.ts";
import type { Shape } from "../core/shape.ts";
import { show, type Tensor } from "../core/tensor.ts";
import { type CreateOptions, tensor } from "../ops/create.ts";
import { type FileEntry, HEADER_BYTES, parseHeader } from "./safetensors-header.ts";

const FORMAT_OF: { readonly [D in DType]: string } = {
  float64: "F64",
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int64: "I64",
  int32: "I32",
  uint8: "U8",
  bool: "BOOL",
};
const DTYPE_OF = new Map(Object.entries(FORMAT_OF).map(([dtype, format]) => [format, dtype as DType]));

/** A safetensors file, mapped into memory: opening one reads its header only. Dispose it when its tensors are loaded. */
export class SafetensorsFile {
  /** Name to format (`F32`, `BF16`, ...), shape and place in the file. */
  readonly entries: ReadonlyMap<string, FileEntry>;
  /** The file's own `__metadata__`; empty when there is none. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly #source: string;
  #bytes: Uint8Array | undefined;

  /** Parses a whole file that is in memory already; `source` names it in errors. Throws FormatError. */
  constructor(bytes: Uint8Array, source: string) {
    const { entries, metadata } = parseHeader(bytes, source);
    this.entries = entries;
    this.metadata = metadata;
    this.#source = source;
    this.#bytes = bytes;
  }
  /** Whether the file has a tensor of that name. */
  has(name: string): boolean {
    return this.entries.has(name);
  }
  /** The bytes of one tensor, in place. Throws ArgumentError when the file has none of that name, DisposedError. */
  bytes(name: string): Uint8Array {
    if (this.#bytes === undefined) {
      throw new DisposedError(`[safetensors] ${this.#source} was disposed; load its tensors before`, {
        source: this.#source,
      });
    }
    const entry = this.entries.get(name);
    if (entry === undefined) {
      throw new ArgumentError(
        `[safetensors] ${this.#source} has no tensor "${name}"; it has ${[...this.entries.keys()].join(", ") || "none"}`,
        {
          name,
          source: this.#source,
        },
      );
    }
    return this.#bytes.subarray(entry.begin, entry.end);
  }
  /**
   * One tensor, copied to an engine in the dtype of the file. Throws ArgumentError (no such tensor), DTypeError (a format that has no
   * dtype here), FormatError (a bool that is neither 0 nor 1), DisposedError, OutOfMemoryError.
   */
  tensor(name: string, options: Pick<CreateOptions, "engine"> = {}): Tensor {
    const bytes = this.bytes(name);
    const { format, shape } = this.entries.get(name)!;
    const dtype = DTYPE_OF.get(format);
    if (dtype === undefined) {
      throw new DTypeError(
        `[safetensors] "${name}" in ${this.#source} is ${format}, which has no dtype here; known: ${[...DTYPE_OF.keys()].join(", ")}`,
        {
          name,
          format,
        },
      );
    }
    if (dtype === "bool" && bytes.some((b) => b > 1)) {
      throw new FormatError(
        `[safetensors] "${name}" in ${this.#source} is BOOL but holds bytes other than 0 and 1`,
        { name },
      );
    }
    const { array, bytes: width } = DTYPES[dtype];
    // A typed array needs its own alignment, which a file does not promise.
    const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
    return tensor(new array(aligned.buffer as ArrayBuffer, aligned.byteOffset, bytes.length / width), shape, {
      ...options,
      dtype,
    });
  }
  /** Lets go of the mapping. */
  [Symbol.dispose](): void {
    this.#bytes = undefined;
  }
}
/**
 * Maps a safetensors file (https://github.com/huggingface/safetensors) and checks its whole header: length, names, formats, shapes,
 * offsets (in range, without overlap or gap), exact file size. Throws FormatError; a file that cannot be opened throws the system's
 * own error. The file must not be shortened while it is mapped.
 */
export function openSafetensors(path: string): SafetensorsFile {
  const status = statSync(path); // before opening: a pipe would wait for its writer
  if (!status.isFile()) throw new FormatError(`[safetensors] ${path} is not a regular file`, { path });
  if (status.size < HEADER_BYTES) {
    throw new FormatError(
      `[safetensors] ${path} has ${status.size} bytes; the header's length alone takes ${HEADER_BYTES}`,
      {
        path,
        bytes: status.size,
      },
    );
  }
  return new SafetensorsFile(Bun.mmap(path, { shared: false }), path);
}
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
