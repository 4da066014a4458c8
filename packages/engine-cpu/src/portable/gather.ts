import { load, memoryOf, offsetsOf, readRaw, store, type Numbers, type View } from "./view.ts";

/** One row x[i, ...] as a view. */
function rowOf(x: View, index: number): View {
  const { dtype, storage, offset, strides, shape } = x;
  return {
    dtype,
    storage,
    offset: offset + index * strides[0]!,
    shape: shape.slice(1),
    strides: strides.slice(1),
  };
}
/** out[i, ...] = x[indices[i], ...]; indices are in range. */
export function gather(x: View, indices: View, out: View): void {
  const from = memoryOf(x) as Float32Array; // any of them: elements are moved, not converted
  const to = memoryOf(out) as Float32Array;
  const source = offsetsOf(x.shape.slice(1), x.strides.slice(1));
  const target = offsetsOf(out.shape.slice(1), out.strides.slice(1));
  const rows = readRaw(indices);
  for (let i = 0; i < rows.length; i++) {
    const a = x.offset + Number(rows[i]) * x.strides[0]!;
    const b = out.offset + i * out.strides[0]!;
    for (let j = 0; j < source.length; j++) to[b + target[j]!] = from[a + source[j]!]!;
  }
}
/** out[indices[i], ...] += x[i, ...], in ascending i; each addition rounds to out's dtype. */
export function scatterAdd(x: View, indices: View, out: View): void {
  const rows = readRaw(indices);
  for (let i = 0; i < rows.length; i++) {
    const row = rowOf(out, Number(rows[i]));
    const a = load(row) as Numbers; // or bigints in all three: + is defined for both
    const b = load(rowOf(x, i)) as Numbers;
    store(row, (sum) => {
      for (let j = 0; j < a.length; j++) (sum as Numbers)[j] = a[j]! + b[j]!;
    });
  }
}
