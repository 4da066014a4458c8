import type { DType } from "../core/dtype.ts";
import { FormatError } from "../core/errors.ts";
import type { Shape } from "../core/shape.ts";
import type { ByteSource } from "./byte-source.ts";

/** Bytes of the little-endian length that a file starts with. */
export const HEADER_BYTES = 8;
/** The format's own limit on the header, which bounds what a hostile length can make us parse. */
const MAX_HEADER = 100_000_000;
/** Bytes of an element, for every element format of the specification whose elements are whole bytes. */
const FORMAT_BYTES: Readonly<Record<string, number>> = {
  F64: 8,
  I64: 8,
  U64: 8,
  F32: 4,
  I32: 4,
  U32: 4,
  F16: 2,
  BF16: 2,
  I16: 2,
  U16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I8: 1,
  U8: 1,
  BOOL: 1,
};
/** How the format names each dtype. */
export const FORMAT_OF: { readonly [D in DType]: string } = {
  float64: "F64",
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int64: "I64",
  int32: "I32",
  uint8: "U8",
  bool: "BOOL",
};
/** The dtype of an element format, for those that have one here. */
export const DTYPE_OF: ReadonlyMap<string, DType> = new Map(
  Object.entries(FORMAT_OF).map(([dtype, format]) => [format, dtype as DType]),
);
/** One tensor of a file. */
export interface FileEntry {
  /** The element format as the file names it: F32, BF16, I64, ... */
  readonly format: string;
  readonly shape: Shape;
  /** First byte within the file. */
  readonly begin: number;
  /** Byte after the last. */
  readonly end: number;
}
/** What the header of a file says. */
export interface FileHeader {
  readonly entries: Map<string, FileEntry>;
  readonly metadata: Map<string, string>;
}
type Fail = (why: string, details?: Record<string, unknown>) => never;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
function isLength(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
/** A name that one object of a valid JSON text has twice, which JSON.parse would settle by silently dropping the first. */
function repeatedName(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (const [token] of json.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"(?:\s*:)?|[{}]/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (token.endsWith(":")) {
      const name = JSON.parse(token.slice(0, -1)) as string;
      const names = open[open.length - 1]!;
      if (names.has(name)) return name;
      names.add(name);
    }
  }
  return undefined;
}
function readLength(source: ByteSource, fail: Fail): number {
  const { size } = source;
  if (size < HEADER_BYTES)
    fail(`has ${size} bytes; the header's length alone takes ${HEADER_BYTES}`, { bytes: size });
  const bytes = new Uint8Array(HEADER_BYTES);
  source.read(0, bytes);
  const length = new DataView(bytes.buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER))
    fail(`says its header has ${length} bytes; at most ${MAX_HEADER} are allowed`, {
      length: String(length),
    });
  const dataStart = HEADER_BYTES + Number(length);
  if (dataStart > size) {
    fail(
      `says its header ends at byte ${dataStart}, but the file has ${size}: it is cut off, or not a safetensors file`,
      { dataStart, bytes: size },
    );
  }
  return Number(length);
}
function readJson(source: ByteSource, length: number, fail: Fail): Record<string, unknown> {
  const bytes = new Uint8Array(length);
  source.read(HEADER_BYTES, bytes);
  if (bytes[0] !== 0x7b) fail("has a header that does not start with {: it is not a safetensors file");
  let json: unknown;
  let repeated: string | undefined;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    json = JSON.parse(text);
    repeated = repeatedName(text);
  } catch (error) {
    fail(`has a header that is not valid JSON in UTF-8 (${(error as Error).message})`);
  }
  if (repeated !== undefined) fail(`names "${repeated}" twice in its header`, { name: repeated });
  return isObject(json) ? json : fail("has a header that is not a JSON object");
}
function readMetadata(value: unknown, fail: Fail): Map<string, string> {
  if (value === undefined) return new Map();
  if (!isObject(value) || Object.values(value).some((v) => typeof v !== "string"))
    fail("has a __metadata__ that does not map strings to strings");
  return new Map(Object.entries(value as Record<string, string>));
}
function readEntry(
  name: string,
  value: unknown,
  dataStart: number,
  fileLength: number,
  fail: Fail,
): FileEntry {
  if (!isObject(value)) return fail(`describes "${name}" with something that is not an object`, { name });
  const { dtype, shape, data_offsets: offsets } = value;
  const width = typeof dtype === "string" && Object.hasOwn(FORMAT_BYTES, dtype) ? FORMAT_BYTES[dtype]! : 0;
  if (width === 0) fail(`gives "${name}" the unknown dtype ${JSON.stringify(dtype)}`, { name, dtype });
  if (!Array.isArray(shape) || !shape.every(isLength))
    return fail(`gives "${name}" the shape ${JSON.stringify(shape)}`, { name, shape });
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isLength)) {
    return fail(`gives "${name}" the offsets ${JSON.stringify(offsets)}`, { name, offsets });
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end || end > fileLength - dataStart) {
    fail(`places "${name}" at ${begin}..${end} of ${fileLength - dataStart} bytes of data`, {
      name,
      begin,
      end,
    });
  }
  const size = shape.includes(0) ? 0 : shape.reduce((n: number, d: number) => n * d, width);
  if (size !== end - begin) {
    fail(`gives "${name}" ${end - begin} bytes, but ${String(dtype)}[${shape.join(", ")}] takes ${size}`, {
      name,
      dtype,
      shape,
      begin,
      end,
    });
  }
  return { format: dtype as string, shape, begin: dataStart + begin, end: dataStart + end };
}
/**
 * Reads and checks the header of a safetensors file, which `name` stands for in errors: every tensor in range, sizes exact, no two
 * overlapping, no gap and nothing after the last one. Throws FormatError naming the offending tensor.
 */
export function readHeader(source: ByteSource, name: string): FileHeader {
  const fail: Fail = (why, details) => {
    // A hostile name or shape may be as long as the header.
    const words = why.length > 1000 ? `${why.slice(0, 1000)}...` : why;
    throw new FormatError(`[safetensors] ${name} ${words}`, { source: name, ...details });
  };
  const { size } = source;
  const length = readLength(source, fail);
  const dataStart = HEADER_BYTES + length;
  const json = readJson(source, length, fail);
  const metadata = readMetadata(json["__metadata__"], fail);
  const entries = new Map<string, FileEntry>();
  for (const [key, value] of Object.entries(json)) {
    if (key !== "__metadata__") entries.set(key, readEntry(key, value, dataStart, size, fail));
  }
  checkPlaces(entries, dataStart, size, fail);
  return { entries, metadata };
}
/** Tensors must follow one another from the header's end to the file's. */
function checkPlaces(
  entries: ReadonlyMap<string, FileEntry>,
  dataStart: number,
  size: number,
  fail: Fail,
): void {
  let at = dataStart;
  for (const [name, { begin, end }] of [...entries].sort(
    ([, a], [, b]) => a.begin - b.begin || a.end - b.end,
  )) {
    if (begin !== at)
      fail(
        `places "${name}" at byte ${begin}, ${begin < at ? "inside another tensor" : "after a gap"}; expected ${at}`,
        { name, begin, expected: at },
      );
    at = end;
  }
  if (at !== size) fail(`has ${size - at} bytes after its last tensor`, { extra: size - at });
}
