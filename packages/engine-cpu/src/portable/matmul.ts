import { load, type Numbers, offsetsOf, store, type View } from "./view.ts";

/** Rows and columns of the register block; 16 sums are about what the compiler keeps out of memory. */
const BLOCK = 4;
/** How many columns of b stay packed in the cache while all rows of a pass: 64 * K doubles. */
const PANEL = 64;

/** Element (line, k) of a matrix at line * lineStep + k * kStep, packed in blocks of 4 lines: [lines / 4, K, 4], zeros past the end. */
function pack(x: Numbers, lines: number, K: number, lineStep: number, kStep: number): Float64Array {
  const out = new Float64Array(Math.ceil(lines / BLOCK) * BLOCK * K);
  for (let line = 0; line < lines; line++) {
    let to = (line - (line % BLOCK)) * K + (line % BLOCK);
    let from = line * lineStep;
    for (let k = 0; k < K; k++, to += BLOCK, from += kStep) out[to] = x[from]!;
  }
  return out;
}
/** sums[4 * i + j] = sum over k of a[k, i] * b[k, j] for one packed block of each. */
// prettier-ignore
function block(a: Float64Array, b: Float64Array, ai: number, bi: number, K: number, sums: Float64Array): void {
  let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
  for (let k = 0; k < K; k++, ai += BLOCK, bi += BLOCK) {
    const b0 = b[bi]!, b1 = b[bi + 1]!, b2 = b[bi + 2]!, b3 = b[bi + 3]!;
    const a0 = a[ai]!, a1 = a[ai + 1]!, a2 = a[ai + 2]!, a3 = a[ai + 3]!;
    s00 += a0 * b0; s01 += a0 * b1; s02 += a0 * b2; s03 += a0 * b3;
    s10 += a1 * b0; s11 += a1 * b1; s12 += a1 * b2; s13 += a1 * b3;
    s20 += a2 * b0; s21 += a2 * b1; s22 += a2 * b2; s23 += a2 * b3;
    s30 += a3 * b0; s31 += a3 * b1; s32 += a3 * b2; s33 += a3 * b3;
  }
  sums[0] = s00; sums[1] = s01; sums[2] = s02; sums[3] = s03;
  sums[4] = s10; sums[5] = s11; sums[6] = s12; sums[7] = s13;
  sums[8] = s20; sums[9] = s21; sums[10] = s22; sums[11] = s23;
  sums[12] = s30; sums[13] = s31; sums[14] = s32; sums[15] = s33;
}
const sums = new Float64Array(BLOCK * BLOCK);
/** product [M, N] = a @ b for packed a and b. */
function multiply(
  a: Float64Array,
  b: Float64Array,
  M: number,
  N: number,
  K: number,
  product: Float64Array,
): void {
  for (let n0 = 0; n0 < N; n0 += PANEL) {
    for (let m = 0; m < M; m += BLOCK) {
      for (let n = n0; n < Math.min(N, n0 + PANEL); n += BLOCK) {
        block(a, b, m * K, n * K, K, sums);
        for (let i = 0; i < Math.min(BLOCK, M - m); i++) {
          for (let j = 0; j < Math.min(BLOCK, N - n); j++)
            product[(m + i) * N + n + j] = sums[BLOCK * i + j]!;
        }
      }
    }
  }
}
/** One matrix of a batch as a view. */
function matrixOf(x: View, offset: number): View {
  const { dtype, storage, shape, strides } = x;
  return { dtype, storage, offset: x.offset + offset, shape: shape.slice(-2), strides: strides.slice(-2) };
}
/**
 * out[..., M, N] = alpha * a[..., M, K] @ b[..., K, N] + beta * out in float64, rounded once at the store. beta = 0 does not read out.
 * Leading axes are already broadcast, and a matrix that repeats is packed once in a row.
 */
export function matmul(a: View, b: View, out: View, alpha: number, beta: number): void {
  const [M, K] = a.shape.slice(-2) as [number, number];
  const N = b.shape.at(-1)!;
  const offsets = (x: View): number[] => offsetsOf(x.shape.slice(0, -2), x.strides);
  const [fromA, fromB, to] = [offsets(a), offsets(b), offsets(out)];
  const product = new Float64Array(M * N);
  let packedA: Float64Array | undefined;
  let packedB: Float64Array | undefined;
  for (let i = 0; i < to.length; i++) {
    if (i === 0 || fromA[i] !== fromA[i - 1])
      packedA = pack(load(matrixOf(a, fromA[i]!)) as Numbers, M, K, K, 1);
    if (i === 0 || fromB[i] !== fromB[i - 1])
      packedB = pack(load(matrixOf(b, fromB[i]!)) as Numbers, N, K, 1, N);
    multiply(packedA!, packedB!, M, N, K, product);
    const target = matrixOf(out, to[i]!);
    const old = beta === 0 ? undefined : (load(target) as Numbers);
    store(target, (result) => {
      const c = result as Numbers;
      if (old === undefined) for (let j = 0; j < product.length; j++) c[j] = alpha * product[j]!;
      else for (let j = 0; j < product.length; j++) c[j] = alpha * product[j]! + beta * old[j]!;
    });
  }
}
