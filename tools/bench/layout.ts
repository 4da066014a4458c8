import { uniform } from "./random.ts";
import type { PrefillShape } from "./shapes.ts";

/** Token `t` of a head-major cache [Hkv, length, D] as a row [Hkv * D]. */
export function headMajorRow(
  cache: Float32Array,
  { length, numKvHeads, headDim }: PrefillShape,
  t: number,
): Float32Array<ArrayBuffer> {
  const row = new Float32Array(numKvHeads * headDim);
  for (let h = 0; h < numKvHeads; h++) {
    const start = (h * length + t) * headDim;
    row.set(cache.subarray(start, start + headDim), h * headDim);
  }
  return row;
}

/** Page numbers 0 to count - 1 in shuffled order, the same each time: a pool in use hands out pages in no order. */
export function shuffledPages(count: number): Int32Array<ArrayBuffer> {
  const keys = uniform(count, 5);
  return Int32Array.from({ length: count }, (_, i) => i).sort((a, b) => keys[a]! - keys[b]!);
}

/**
 * A head-major cache [Hkv, length, D] as pages [P, Hkv, pageSize, D]: tokens i * pageSize onwards go to page `order[i]`.
 * `length` is a multiple of `pageSize`.
 */
export function pages(
  cache: Float32Array,
  { length, numKvHeads, headDim }: PrefillShape,
  pageSize: number,
  order: Int32Array,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(cache.length);
  const run = pageSize * headDim;
  order.forEach((page, i) => {
    for (let h = 0; h < numKvHeads; h++) {
      const start = h * length * headDim + i * run;
      out.set(cache.subarray(start, start + run), (page * numKvHeads + h) * run);
    }
  });
  return out;
}
