import { type DType, DTYPES } from "@heed/tensor";
import type { DeviceLimits, Gemm, Launch } from "../launch.ts";
import { type Axes, collapse, pick, sizeOf } from "./axes.ts";
import type { View } from "./view.ts";

/** A batch of products: `batch` has the leading axes of out, a and b, in that order; [row, column] strides of each. */
export interface Product {
  readonly batch: Axes;
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly out: readonly [number, number];
  readonly a: readonly [number, number];
  readonly b: readonly [number, number];
}
const inner = (t: View): [number, number] => [t.strides.at(-2)!, t.strides.at(-1)!];

/**
 * out [..., M, N] = a [..., M, K] @ b [..., K, N] with as few batch axes as possible. An axis over which b is shared and whose steps
 * continue the rows is more rows: [B, S, K] @ [K, N] is one product.
 */
export function productOf(a: View, b: View, out: View): Product {
  const lead = out.shape.map((_, i) => i).slice(0, -2);
  const batch = collapse(pick({ shape: out.shape, strides: [out.strides, a.strides, b.strides] }, lead));
  let M = out.shape.at(-2)!;
  const [N, K] = [out.shape.at(-1)!, a.shape.at(-1)!];
  const [outSteps, aSteps, bSteps] = [inner(out), inner(a), inner(b)];
  const shape = [...batch.shape];
  while (shape.length > 0) {
    const last = shape.length - 1;
    const [ofOut, ofA, ofB] = batch.strides.map((s) => s[last]!) as [number, number, number];
    if (shape[last] !== 1) {
      if (M === 1) [outSteps[0], aSteps[0]] = [ofOut, ofA];
      if (ofB !== 0 || ofOut !== M * outSteps[0] || ofA !== M * aSteps[0]) break;
    }
    M *= shape.pop()!;
  }
  // Along a length of 1 nothing is a step: whatever makes the matrix dense.
  if (M === 1) [outSteps[0], aSteps[0]] = [N, K];
  if (N === 1) [outSteps[1], bSteps[1]] = [1, bSteps[0] === 1 ? K : 1];
  const rest = pick(
    batch,
    shape.map((_, i) => i),
  );
  return { batch: collapse(rest), M, N, K, out: outSteps, a: aSteps, b: bSteps };
}

/** kFewRows and kFewColumns of native/kernels/core/matmul_few.cuh, whose blocks have 8 warps. */
const FEW_ROWS = 8;
const FEW_COLUMNS = 2 * 8;
/** Depth and rows of padding of a tile of native/kernels/core/matmul_tile.cuh. */
const DEPTHS: Readonly<Record<string, number>> = { float64_64: 8, float32_64: 16, float32_128: 8 };
const PADDING = 4;
/** Stages and depth of native/kernels/core/matmul_mma.cuh. */
const STAGES = 3;
const MMA_DEPTH = 32;
const MOST_Y = 65535;

function tileLaunch(dtype: DType, p: Product, matrices: number, size: number): Launch {
  const kind = `${dtype}_${size}`;
  const depth = DEPTHS[kind];
  const shared =
    depth === undefined
      ? STAGES * 2 * size * MMA_DEPTH * 2
      : 2 * depth * (size + PADDING) * DTYPES[dtype].bytes;
  const tiles = Math.ceil(p.M / size) * Math.ceil(p.N / size);
  const threads = depth === undefined && size === 64 ? 128 : 256;
  return {
    kernel: `heed_cuda_matmul_${kind}`,
    grid: [tiles, Math.min(matrices, MOST_Y), 1],
    threads,
    shared,
  };
}
/**
 * The own kernel for a product and its grid. Up to 8 rows against a b that is dense along the depth are bound by reading b and have a
 * kernel for that; tiles of 128 once they give every multiprocessor one, else of 64, four times as many.
 */
export function productLaunch(dtype: DType, p: Product, limits: DeviceLimits): Launch {
  const matrices = sizeOf(p.batch.shape);
  if (isFew(p)) {
    const blocks = Math.min(Math.ceil(p.N / FEW_COLUMNS), 2 ** 31 - 1);
    return {
      kernel: `heed_cuda_matmul_${dtype}_${p.M === 1 ? "one" : "few"}`,
      grid: [blocks, Math.min(matrices, MOST_Y), 1],
      threads: 256,
      shared: 0,
    };
  }
  const large = Math.ceil(p.M / 128) * Math.ceil(p.N / 128) * matrices >= limits.multiprocessors;
  return tileLaunch(dtype, p, matrices, large && dtype !== "float64" ? 128 : 64);
}
/** Whether the product is bound by reading b once, where the library is no faster and the sums of a row should not depend on M. */
export function isFew(p: Product): boolean {
  return p.M <= FEW_ROWS && p.b[0] === 1;
}

/** A matrix as BLAS takes it: dense along rows, or along columns and then transposed. */
function plain(
  [row, column]: readonly [number, number],
  rows: number,
  columns: number,
): { ld: number; transposed: boolean } | undefined {
  if (column === 1 && row >= columns) return { ld: row, transposed: false };
  if (row === 1 && column >= rows) return { ld: column, transposed: true };
  return undefined;
}
/** The product as a call of the library, or undefined where its strides are not what BLAS takes. Addresses are the operands'. */
export function gemmOf(
  dtype: DType,
  p: Product,
  at: { readonly a: number; readonly b: number; readonly out: number },
  alpha: number,
  beta: number,
): Gemm | undefined {
  const a = plain(p.a, p.M, p.K);
  const b = plain(p.b, p.K, p.N);
  const c = plain(p.out, p.M, p.N);
  if (p.batch.shape.length > 1 || a === undefined || b === undefined || c === undefined || c.transposed)
    return undefined;
  const [strideC, strideA, strideB] = p.batch.strides.map((s) => s[0]!) as [number, number, number];
  if (p.batch.shape[0] !== 1 && (strideA < 0 || strideB < 0 || strideC < 0)) return undefined;
  return {
    dtype,
    transposeA: a.transposed,
    transposeB: b.transposed,
    m: p.M,
    n: p.N,
    k: p.K,
    batch: p.batch.shape[0]!,
    a: at.a,
    b: at.b,
    c: at.out,
    lda: a.ld,
    ldb: b.ld,
    ldc: c.ld,
    strideA,
    strideB,
    strideC,
    alpha,
    beta,
  };
}
