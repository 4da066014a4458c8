/**
 * Reader of conformance vectors: sets of a JSON manifest beside a safetensors file. The safetensors form (an
 * 8-byte little-endian header length, a JSON header, the data) is read here on its own, because the library's
 * reader is among the things the vectors judge.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { decodeBfloat16 } from "./dtype.ts";
import { TestkitError } from "./errors.ts";

/** Arrays that hold tensor data; bfloat16 as its bits, booleans as bytes. */
interface VectorArrays {
  readonly float64: Float64Array<ArrayBuffer>;
  readonly float32: Float32Array<ArrayBuffer>;
  readonly float16: Float16Array<ArrayBuffer>;
  readonly bfloat16: Uint16Array<ArrayBuffer>;
  readonly int64: BigInt64Array<ArrayBuffer>;
  readonly int32: Int32Array<ArrayBuffer>;
  readonly uint8: Uint8Array<ArrayBuffer>;
  readonly bool: Uint8Array<ArrayBuffer>;
}

/** The dtypes a vector may have, under the library's names. */
export type VectorDType = keyof VectorArrays;

/** A tensor read from a safetensors file, row-major. */
export type VectorTensor = {
  readonly [T in VectorDType]: {
    readonly dtype: T;
    readonly shape: readonly number[];
    readonly data: VectorArrays[T];
  };
}[VectorDType];

type Decoder = { readonly bytes: number; read(buffer: ArrayBuffer, shape: readonly number[]): VectorTensor };

const decoders: Readonly<Record<string, Decoder>> = {
  F64: { bytes: 8, read: (b, shape) => ({ dtype: "float64", shape, data: new Float64Array(b) }) },
  F32: { bytes: 4, read: (b, shape) => ({ dtype: "float32", shape, data: new Float32Array(b) }) },
  F16: { bytes: 2, read: (b, shape) => ({ dtype: "float16", shape, data: new Float16Array(b) }) },
  BF16: { bytes: 2, read: (b, shape) => ({ dtype: "bfloat16", shape, data: new Uint16Array(b) }) },
  I64: { bytes: 8, read: (b, shape) => ({ dtype: "int64", shape, data: new BigInt64Array(b) }) },
  I32: { bytes: 4, read: (b, shape) => ({ dtype: "int32", shape, data: new Int32Array(b) }) },
  U8: { bytes: 1, read: (b, shape) => ({ dtype: "uint8", shape, data: new Uint8Array(b) }) },
  BOOL: { bytes: 1, read: (b, shape) => ({ dtype: "bool", shape, data: new Uint8Array(b) }) },
};

function formatError(message: string, details: Readonly<Record<string, unknown>>): TestkitError {
  return new TestkitError("format", `[safetensors] ${message}`, details);
}

interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

function isHeaderEntry(entry: unknown): entry is HeaderEntry {
  if (typeof entry !== "object" || entry === null) return false;
  const { dtype, shape, data_offsets } = entry as Partial<Record<keyof HeaderEntry, unknown>>;
  const isSize = (n: unknown): boolean => Number.isSafeInteger(n) && (n as number) >= 0;
  const areSizes = (list: unknown): boolean => Array.isArray(list) && list.every(isSize);
  return typeof dtype === "string" && areSizes(shape) && areSizes(data_offsets);
}

function readHeader(bytes: Uint8Array): { header: Record<string, unknown>; dataStart: number } {
  if (bytes.length < 8) throw formatError(`file of ${bytes.length} bytes`, { length: bytes.length });
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (length > bytes.length - 8)
    throw formatError(`header of ${length} bytes in a file of ${bytes.length}`, {
      length,
      file: bytes.length,
    });
  let header: unknown;
  try {
    header = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)),
    ) as unknown;
  } catch (cause) {
    throw formatError(`header is not JSON: ${String(cause)}`, { length });
  }
  if (typeof header !== "object" || header === null) throw formatError("header is not an object", { header });
  return { header: header as Record<string, unknown>, dataStart: 8 + length };
}

/**
 * Parses a safetensors file. Data is copied, so a tensor does not keep the file alive and is aligned for its type.
 * Throws a TestkitError with code "format" for a malformed header, an unknown dtype, offsets outside the file or
 * a size that does not fit the shape.
 */
export function parseSafetensors(bytes: Uint8Array): Map<string, VectorTensor> {
  const { header, dataStart } = readHeader(bytes);
  const tensors = new Map<string, VectorTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (!isHeaderEntry(entry))
      throw formatError(`${name} needs a dtype, a shape and two data_offsets; got ${JSON.stringify(entry)}`, {
        name,
      });
    const decoder = Object.hasOwn(decoders, entry.dtype) ? decoders[entry.dtype] : undefined;
    if (!decoder) throw formatError(`${name} has unknown dtype ${entry.dtype}`, { name, dtype: entry.dtype });
    const [start, end] = entry.data_offsets;
    const size = entry.shape.reduce((a, n) => a * n, decoder.bytes);
    if (end - start !== size || dataStart + end > bytes.length)
      throw formatError(
        `${name}: ${entry.dtype}[${entry.shape.join(", ")}] does not fit bytes ${start}..${end}`,
        {
          name,
          ...entry,
        },
      );
    const copy = new Uint8Array(bytes.subarray(dataStart + start, dataStart + end));
    tensors.set(name, decoder.read(copy.buffer, entry.shape));
  }
  return tensors;
}

/** The values of a tensor as float64; booleans become 0 and 1. */
export function toFloat64(tensor: VectorTensor): Float64Array {
  if (tensor.dtype === "bfloat16") return Float64Array.from(tensor.data, decodeBfloat16);
  if (tensor.dtype === "int64") return Float64Array.from(tensor.data, Number);
  return Float64Array.from(tensor.data);
}

/** A case of an `sdpa` set: attention in float64 with its gradients, tensors in the layout [B, H, S, D]. */
export interface SdpaCase {
  readonly name: string;
  /** Role ("q", "output", "grad_q", ...) to tensor name. */
  readonly tensors: Readonly<Record<string, string>>;
  readonly params: {
    readonly causal: boolean;
    readonly window_left: number | null;
    readonly window_right: number | null;
    readonly softcap: number | null;
    readonly scale: number | null;
    readonly alibi: boolean;
    readonly kv_lengths: readonly number[] | null;
  };
}

/** A tensor of an {@link OnnxCase}: its name in the file, dtype and shape. */
export interface OnnxSlot {
  readonly tensor: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** A case of an `onnx` set: one operator with attributes, inputs and outputs by slot name. */
export interface OnnxCase {
  readonly name: string;
  readonly op: string;
  readonly attributes: Readonly<Record<string, number | string | readonly number[]>>;
  readonly inputs: Readonly<Record<string, OnnxSlot>>;
  readonly outputs: Readonly<Record<string, OnnxSlot>>;
  readonly slots: { readonly inputs: readonly string[]; readonly outputs: readonly string[] };
}

/** A case of a `models` set: a model's attention module with weights, outputs and gradients. */
export interface ModelCase {
  readonly name: string;
  readonly model: string;
  /** Hugging Face field names. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly note?: string;
  /** Group ("weights", "input", "grads", ...) to role to tensor name. */
  readonly tensors: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** A set of vectors: its cases, and its tensors by name. */
export interface VectorSet<Case> {
  readonly cases: readonly Case[];
  /** The tensor a manifest names. Throws a TestkitError with code "format" if the file lacks it. */
  tensor(name: string): VectorTensor;
  /** The same as float64. */
  values(name: string): Float64Array;
}

/**
 * The folder of conformance vectors that lies beside a checkout: the first `shared/conformance` found in startDir
 * or a folder above it. Undefined if there is none.
 */
export function findVectors(startDir: string): string | undefined {
  for (let dir = resolve(startDir); ; dir = dirname(dir)) {
    const candidate = join(dir, "shared", "conformance");
    if (existsSync(candidate)) return candidate;
    if (dirname(dir) === dir) return undefined;
  }
}

function loadSet<Case>(folder: string, set: string): VectorSet<Case> {
  const cases = JSON.parse(readFileSync(join(folder, `${set}.json`), "utf8")) as Case[];
  if (!Array.isArray(cases))
    throw new TestkitError("format", `[vectors] ${set}.json must be a list of cases`, { set });
  const tensors = parseSafetensors(readFileSync(join(folder, `${set}.safetensors`)));
  const tensor = (name: string): VectorTensor => {
    const found = tensors.get(name);
    if (found) return found;
    throw new TestkitError("format", `[vectors] ${set}.safetensors has no tensor ${name}`, { set, name });
  };
  return { cases, tensor, values: (name) => toFloat64(tensor(name)) };
}

/** Reads a set of {@link SdpaCase}s from a folder; `set` is its path without extension. */
export function loadSdpaVectors(folder: string, set: string = "sdpa/sdpa"): VectorSet<SdpaCase> {
  return loadSet<SdpaCase>(folder, set);
}

/** Reads a set of {@link OnnxCase}s, such as "onnx/attention". */
export function loadOnnxVectors(folder: string, set: string): VectorSet<OnnxCase> {
  return loadSet<OnnxCase>(folder, set);
}

/** Reads a set of {@link ModelCase}s. */
export function loadModelVectors(folder: string, set: string = "models/models"): VectorSet<ModelCase> {
  return loadSet<ModelCase>(folder, set);
}
