import { allocate, copyInto, type DType, DTYPES, fill, type Pages, Tensor } from "@heed/tensor";
import { DECODE, type DecodeProblem } from "./schedule.ts";

/** What the kernels fetch at once. */
const BYTES = 16;

/** Whether rows are without gaps, start at multiples of 16 bytes and are as long. */
export function isAligned(t: Tensor): boolean {
  const last = t.rank - 1;
  const bytes = DTYPES[t.dtype].bytes;
  return (
    (t.shape[last]! * bytes) % BYTES === 0 &&
    (t.strides[last] === 1 || t.shape[last] === 1) &&
    (t.storage.address + t.offset * bytes) % BYTES === 0 &&
    t.shape.every((n, axis) => axis === last || n === 1 || (t.strides[axis]! * bytes) % BYTES === 0)
  );
}
/**
 * Whether the decode kernel reads pages as such. A number of int4 pages is rounded to the queries' dtype; float16 holds every one only
 * if rows come in float16. Scales are fetched 16 bytes at a time where a page has 16 rows.
 */
export function readsInPlace(pages: Pages, storage: DecodeProblem["storage"], dtype: DType): boolean {
  if (pages instanceof Tensor) return storage === "float" && pages.dtype === dtype && isAligned(pages);
  if (pages.format !== "int4") return storage === "codes" && isAligned(pages.codes);
  return (
    storage === "int4" &&
    (dtype !== "float16" || pages.residual.dtype === dtype) &&
    isAligned(pages.codes) &&
    (pages.codes.shape[2]! % DECODE.keys !== 0 || (isAligned(pages.scales) && isAligned(pages.zeros)))
  );
}
/** The tensor, or a copy whose rows are as {@link isAligned} says, filled up with zeros. A copy belongs to `stack`. */
export function aligned(t: Tensor, stack: DisposableStack): Tensor {
  if (isAligned(t)) return t;
  const copy = stack.use(room(t));
  const width = t.shape.at(-1)!;
  if (copy.shape.at(-1) !== width) fill(copy, 0);
  copyInto(t, stack.use(copy.slice(-1, 0, width)));
  return copy;
}
/** Memory for a tensor of these lengths with aligned rows. */
export function room(t: Tensor): Tensor {
  const vector = BYTES / DTYPES[t.dtype].bytes;
  const up = (n: number): number => Math.ceil(n / vector) * vector;
  return allocate(t.engine, t.dtype, t.shape.with(t.rank - 1, up(t.shape.at(-1)!)));
}
