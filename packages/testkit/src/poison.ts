/** Fills memory that must not be read with values that show if it is. */
import type { FloatDType } from "./dtype.ts";
import { requireLength } from "./errors.ts";
import type { PageTable } from "./oracle/paged.ts";

/** Typed arrays {@link poison} can fill. */
export type PoisonableArray =
  | Float64Array
  | Float32Array
  | Float16Array
  | Int32Array
  | Int16Array
  | Int8Array
  | Uint32Array
  | Uint16Array
  | Uint8Array
  | BigInt64Array
  | BigUint64Array;

const largestInteger = new Map<unknown, number | bigint>([
  [Int32Array, 0x7fffffff],
  [Int16Array, 0x7fff],
  [Int8Array, 0x7f],
  [Uint32Array, 0xffffffff],
  [Uint16Array, 0xffff],
  [Uint8Array, 0xff],
  [BigInt64Array, 0x7fffffffffffffffn],
  [BigUint64Array, 0xffffffffffffffffn],
]);

/** Quiet NaNs of the 16-bit types, for arrays that hold their bits. */
export const nanBits: Readonly<Record<"float16" | "bfloat16", number>> = {
  float16: 0x7e00,
  bfloat16: 0x7fc0,
};

/** The value that {@link poison} fills an array with. */
export function poisonValue(array: PoisonableArray, dtype?: FloatDType): number | bigint {
  const isBits = array instanceof Uint16Array;
  if (isBits && (dtype === "float16" || dtype === "bfloat16")) return nanBits[dtype];
  return largestInteger.get(array.constructor) ?? NaN;
}

/**
 * Fills an array, or its elements start .. end-1, with NaN, or with the largest value of an integer type: as an
 * index or length it reaches far outside. `dtype` says that a Uint16Array holds float16 or bfloat16 bits, which
 * become NaN. Returns the array.
 */
export function poison<T extends PoisonableArray>(
  array: T,
  options: {
    readonly dtype?: FloatDType | undefined;
    readonly start?: number | undefined;
    readonly end?: number | undefined;
  } = {},
): T {
  const value = poisonValue(array, options.dtype);
  // Each class of the union takes number or bigint; poisonValue gives the one that fits.
  (array as { fill(value: number | bigint, start?: number, end?: number): unknown }).fill(
    value,
    options.start ?? 0,
    options.end ?? array.length,
  );
  return array;
}

/** Shape of the pages that {@link poisonPages} fills: [numPages, Hkv, pageSize, width]. */
export interface PagesShape {
  readonly numPages: number;
  readonly Hkv: number;
  readonly width: number;
  readonly dtype?: FloatDType | undefined;
}

/**
 * Poisons every slot of pages [numPages, Hkv, pageSize, width] that no sequence of the table holds: pages that are
 * not listed, and slots beyond a sequence's length. A slot that any sequence holds is kept. Returns the number of
 * slots poisoned. Throws a TestkitError with code "argument" if the pages have another length than the shape.
 */
export function poisonPages(pages: PoisonableArray, table: PageTable, shape: PagesShape): number {
  const { numPages, Hkv, width, dtype } = shape;
  const { pageSize, indptr, indices, lengths } = table;
  requireLength("poisonPages", "pages", pages, numPages * Hkv * pageSize * width);
  const held = new Uint8Array(numPages * pageSize);
  for (let n = 0; n < lengths.length; n++)
    for (let t = 0; t < lengths[n]!; t++)
      held[indices[indptr[n]! + Math.floor(t / pageSize)]! * pageSize + (t % pageSize)] = 1;
  let count = 0;
  for (let slot = 0; slot < held.length; slot++) {
    if (held[slot]) continue;
    count++;
    const page = Math.floor(slot / pageSize);
    for (let h = 0; h < Hkv; h++) {
      const start = ((page * Hkv + h) * pageSize + (slot % pageSize)) * width;
      poison(pages, { dtype, start, end: start + width });
    }
  }
  return count;
}

/** A rectangular table of pages [N, maxPages], and its width. */
export interface BlockTable {
  /** [N, maxPages], row-major. */
  readonly data: Int32Array;
  readonly maxPages: number;
}

/**
 * The rectangular form of a table's page lists, `extra` entries wider than the longest list; entries that no
 * sequence uses are 2^31 - 1, far outside any pool.
 */
export function poisonedBlockTable(table: PageTable, extra: number = 1): BlockTable {
  const { indptr, indices, lengths } = table;
  let longest = 0;
  for (let n = 0; n < lengths.length; n++) longest = Math.max(longest, indptr[n + 1]! - indptr[n]!);
  const maxPages = longest + extra;
  const data = poison(new Int32Array(lengths.length * maxPages));
  for (let n = 0; n < lengths.length; n++)
    for (let at = indptr[n]!; at < indptr[n + 1]!; at++) data[n * maxPages + at - indptr[n]!] = indices[at]!;
  return { data, maxPages };
}
