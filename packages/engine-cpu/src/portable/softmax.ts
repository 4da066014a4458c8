import { load, type Numbers, store, type View } from "./view.ts";

/** exp(x - max) / sum over the last axis, in float64 and rounded once; a row that is -Infinity throughout gives zeros. */
export function softmax(x: View, out: View): void {
  const n = x.shape.at(-1)!;
  const values = load(x) as Numbers;
  const row = new Float64Array(n);
  store(out, (result) => {
    for (let start = 0; start < values.length; start += n) {
      softmaxRow(values, start, row);
      (result as Numbers).set(row, start);
    }
  });
}
function softmaxRow(x: Numbers, start: number, out: Float64Array): void {
  let max = -Infinity;
  for (let i = 0; i < out.length; i++) max = Math.max(max, x[start + i]!);
  if (max === -Infinity) {
    out.fill(0);
    return;
  }
  let sum = 0;
  for (let i = 0; i < out.length; i++) sum += out[i] = Math.exp(x[start + i]! - max);
  for (let i = 0; i < out.length; i++) out[i]! /= sum;
}
