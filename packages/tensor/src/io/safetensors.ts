import { DTYPES, type DType, isFloat } from "../core/dtype.ts";
import {
  ArgumentError,
  DisposedError,
  DTypeError,
  FormatError,
  OutOfMemoryError,
  ShapeError,
} from "../core/errors.ts";
import { checkShape, contiguousStrides } from "../core/shape.ts";
import { scope } from "../core/scope.ts";
import { Storage } from "../core/storage.ts";
import { allocate, show, Tensor } from "../core/tensor.ts";
import type { Engine } from "../engine/engine.ts";
import { getEngine } from "../engine/registry.ts";
import { copyInto } from "../ops/concat.ts";
import { type CreateOptions, tensor } from "../ops/create.ts";
import { type ByteSource, FileSource, memorySource } from "./byte-source.ts";
import { DTYPE_OF, type FileEntry, readHeader } from "./safetensors-header.ts";

/** Bytes that go from a file to an engine at a time, which is what a copy takes besides the tensor. */
const CHUNK = 1 << 20;

/** Options of {@link SafetensorsFile.tensor}. */
export interface FileTensorOptions extends Pick<CreateOptions, "engine"> {
  /**
   * Map the tensor's part of the file instead of copying it, where {@link SafetensorsFile.isMappable} and the system allow; else it is
   * copied after all (`tensor.storage.isMapped` tells). Writes into it stay in this process and never reach the file. **The risk:** when
   * anybody shortens the file while the tensor lives, reading what is gone ends the process (SIGBUS), and what is written into the file
   * in place changes the tensor; replacing the file by renaming another over it, or deleting it, is safe. Default false.
   */
  readonly map?: boolean | undefined;
}
type Known = FileEntry & { readonly dtype: DType };

/**
 * A safetensors file whose header has been read and checked. Dispose it when its tensors are loaded; they live on, mapped ones too.
 */
export class SafetensorsFile {
  /** Name to format (`F32`, `BF16`, ...), shape and place in the file. */
  readonly entries: ReadonlyMap<string, FileEntry>;
  /** The file's own `__metadata__`; empty when there is none. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly #name: string;
  #source: ByteSource | undefined;

  /** Takes a whole file that is in memory, or a source to close at the end; `name` is its name in errors. Throws FormatError. */
  constructor(from: Uint8Array | ByteSource, name: string) {
    const source = from instanceof Uint8Array ? memorySource(from) : from;
    const { entries, metadata } = readHeader(source, name);
    this.entries = entries;
    this.metadata = metadata;
    this.#name = name;
    this.#source = source;
  }
  /** Whether the file has a tensor of that name. */
  has(name: string): boolean {
    return this.entries.has(name);
  }
  /**
   * A copy of one tensor's bytes. Throws ArgumentError when the file has none of that name, FormatError when it was shortened,
   * DisposedError, OutOfMemoryError.
   */
  bytes(name: string): Uint8Array<ArrayBuffer> {
    const { begin, end } = this.#entry(name);
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = new Uint8Array(end - begin);
    } catch {
      throw new OutOfMemoryError(`[safetensors] cannot allocate ${end - begin} bytes for "${name}"`, {
        name,
        bytes: end - begin,
      });
    }
    this.#open().read(begin, bytes);
    return bytes;
  }
  /**
   * Whether {@link tensor} can map one instead of copying it: it is in a file and not empty, starts at a multiple of its element size,
   * the engine computes in the host's memory, and it is of floats (an integer that changes after its check would be an index out of
   * range). Throws ArgumentError when there is no such tensor, DisposedError, DeviceError.
   */
  isMappable(name: string, options: Pick<CreateOptions, "engine"> = {}): boolean {
    const { format, begin, end } = this.#entry(name);
    const dtype = DTYPE_OF.get(format);
    if (this.#open().map === undefined || engineOf(options.engine).wrap === undefined) return false;
    return dtype !== undefined && isFloat(dtype) && end > begin && begin % DTYPES[dtype].bytes === 0;
  }
  /**
   * One tensor in the dtype of the file: a copy, or with `map` the file's own memory. Throws ArgumentError (no such tensor), DTypeError (a
   * format that has no dtype here), ShapeError (a rank past 8), FormatError (a bool that is neither 0 nor 1, a file that was shortened),
   * DisposedError, OutOfMemoryError, the system's own errors.
   */
  tensor(name: string, options: FileTensorOptions = {}): Tensor {
    const known = this.#known(name);
    const engine = engineOf(options.engine);
    checkShape(known.shape, "safetensors");
    const mapped = options.map === true && this.isMappable(name, { engine }) && this.#map(known, engine);
    if (mapped) return mapped;
    return scope(() => {
      const out = allocate(engine, known.dtype, known.shape.slice());
      this.copyInto(name, out);
      return out as Tensor;
    });
  }
  /**
   * Copies one tensor to a contiguous one of the same shape, converting to its dtype, through a buffer of 1 MiB. Throws as {@link tensor},
   * and ShapeError; when the file itself fails on the way, `out` holds a part of it.
   */
  copyInto(name: string, out: Tensor): void {
    const { dtype, shape, begin } = this.#known(name);
    const source = this.#open();
    out.check();
    if (out.shape.join() !== shape.join() || !out.isContiguous) {
      throw new ShapeError(
        `[safetensors] "${name}" in ${this.#name} goes to a contiguous tensor of shape [${shape.join(", ")}]; got ${show(out)} with strides [${out.strides.join(", ")}]`,
        { name, shape, out: out.shape, strides: out.strides },
      );
    }
    const { array, bytes: width } = DTYPES[dtype];
    const { size } = out;
    const most = Math.min(CHUNK / width, size);
    const buffer = new ArrayBuffer(most * width);
    for (let at = 0; at < size; at += most) {
      const count = Math.min(most, size - at);
      const bytes = new Uint8Array(buffer, 0, count * width);
      source.read(begin + at * width, bytes);
      if (dtype === "bool") this.#checkBools(name, bytes);
      using flat = out.reshape([size]);
      using part = flat.slice(0, at, at + count);
      const values = new array(buffer, 0, count);
      if (dtype === out.dtype) {
        out.engine.upload(values, part);
      } else {
        using stored = tensor(values, [count], { engine: out.engine, dtype });
        copyInto(stored, part);
      }
    }
  }
  /** Lets go of the file. */
  [Symbol.dispose](): void {
    this.#source?.close();
    this.#source = undefined;
  }
  #open(): ByteSource {
    if (this.#source !== undefined) return this.#source;
    throw new DisposedError(`[safetensors] ${this.#name} was disposed; load its tensors before`, {
      source: this.#name,
    });
  }
  #entry(name: string): FileEntry {
    this.#open();
    const entry = this.entries.get(name);
    if (entry !== undefined) return entry;
    throw new ArgumentError(
      `[safetensors] ${this.#name} has no tensor "${name}"; it has ${[...this.entries.keys()].join(", ") || "none"}`,
      { name, source: this.#name },
    );
  }
  #known(name: string): Known {
    const entry = this.#entry(name);
    const dtype = DTYPE_OF.get(entry.format);
    if (dtype !== undefined) return { ...entry, dtype };
    throw new DTypeError(
      `[safetensors] "${name}" in ${this.#name} is ${entry.format}, which has no dtype here; known: ${[...DTYPE_OF.keys()].join(", ")}`,
      { name, format: entry.format },
    );
  }
  #map({ dtype, shape, begin, end }: Known, engine: Engine): Tensor | undefined {
    const buffer = this.#open().map?.(begin, end);
    if (buffer === undefined) return undefined;
    const storage = new Storage(engine.wrap!(buffer), end - begin, true);
    return new Tensor(engine, storage, dtype, shape.slice(), contiguousStrides(shape), 0);
  }
  #checkBools(name: string, bytes: Uint8Array): void {
    if (bytes.every((b) => b <= 1)) return;
    throw new FormatError(
      `[safetensors] "${name}" in ${this.#name} is BOOL but holds bytes other than 0 and 1`,
      {
        name,
      },
    );
  }
}
function engineOf(engine: Engine | string | undefined): Engine {
  return typeof engine === "object" ? engine : getEngine(engine);
}
/**
 * Opens a safetensors file (https://github.com/huggingface/safetensors) and checks its whole header: length, names, formats, shapes,
 * offsets (in range, without overlap or gap), exact file size. Throws FormatError; a file that cannot be opened throws the system's
 * own error.
 */
export function openSafetensors(path: string): SafetensorsFile {
  const source = new FileSource(path);
  try {
    return new SafetensorsFile(source, path);
  } catch (error) {
    source.close();
    throw error;
  }
}
