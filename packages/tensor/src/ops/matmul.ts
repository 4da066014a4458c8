import { DTYPES, type FloatDType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { broadcastShapes } from "../core/shape.ts";
import { allocate, computed, show, type Tensor } from "../core/tensor.ts";
import { floatOnly, oneEngine, sameDType } from "./check.ts";
import { fill } from "./create.ts";
import { binary } from "./elementwise.ts";

/** Options of {@link matmul}. */
export interface MatmulOptions {
  /** Factor of the product. Default 1. */
  readonly alpha?: number;
  /** Factor of what `out` holds. Default 0, which does not read `out`. */
  readonly beta?: number;
  /** Where the result goes: [..., M, N] of a's dtype. Default a new tensor. */
  readonly out?: Tensor;
}
/** Dtypes of b that {@link matmul} takes beside an a of dtype D: the same, or 16 bits beside float32. */
export type MatmulDType<D extends FloatDType> = D | (D extends "float32" ? "float16" | "bfloat16" : never);
/** Whether a product takes b as it is: of a's dtype, or 16-bit weights beside float32. */
export function isMixedProduct(a: Tensor, b: Tensor): boolean {
  const { isFloat, bytes } = DTYPES[b.dtype];
  return a.dtype === "float32" && isFloat && bytes === 2;
}
/**
 * alpha * a @ b + beta * out for a [..., M, K] and b [..., K, N]; leading axes broadcast. Transpose an operand with transpose(), which
 * copies nothing. One dtype, except that b may be float16 or bfloat16 beside float32, for weights that are read as they are stored. 16-bit
 * floats accumulate in float32 and round once. Throws ShapeError, DTypeError, DeviceError, DisposedError.
 */
export function matmul<D extends FloatDType>(
  a: Tensor<D>,
  b: Tensor<MatmulDType<NoInfer<D>>>,
  options: MatmulOptions = {},
): Tensor<D> {
  const { alpha = 1, beta = 0 } = options;
  const engine = oneEngine("matmul", a, b, options.out);
  floatOnly("matmul", a);
  if (!isMixedProduct(a, b)) sameDType("matmul", a, b);
  sameDType("matmul", a, options.out);
  if (a.rank < 2 || b.rank < 2 || a.shape[a.rank - 1] !== b.shape[b.rank - 2]) {
    throw new ShapeError(`[matmul] needs [..., M, K] and [..., K, N]; got ${show(a)} and ${show(b)}`, {
      a: a.shape,
      b: b.shape,
    });
  }
  const [M, K] = a.shape.slice(-2) as [number, number];
  const N = b.shape[b.rank - 1]!;
  const lead = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2), "matmul");
  const shape = [...lead, M, N];
  if (options.out !== undefined && options.out.shape.join() !== shape.join()) {
    throw new ShapeError(`[matmul] out must be [${shape.join(", ")}]; got ${show(options.out)}`, {
      out: options.out.shape,
      shape,
    });
  }
  const compute = (out: Tensor<D>): void => {
    if (out.size === 0) return;
    if (K === 0) {
      if (beta === 0) fill(out, 0);
      else binary("mul", out, beta, out);
      return;
    }
    using x = a.broadcastTo([...lead, M, K]);
    using y = b.broadcastTo([...lead, K, N]);
    engine.matmul(x, y, out, alpha, beta);
  };
  const { out } = options;
  if (out === undefined) return computed(allocate(engine, a.dtype, shape), compute);
  compute(out as Tensor<D>);
  return out as Tensor<D>;
}
