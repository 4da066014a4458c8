/**
 * A linear map in float64, in the layout of PyTorch's weights:
 *
 *     out = x @ weight^T + bias;  dx = dOut @ weight;  dWeight = dOut^T @ x;  dBias = sum over rows of dOut
 */
import { requireLength } from "../errors.ts";

/** Sizes of {@link linearOracle}. */
export interface LinearDims {
  /** Rows of x. */
  readonly M: number;
  /** Elements of a row of x. */
  readonly K: number;
  /** Elements of a row of the output. */
  readonly N: number;
}

/**
 * x [M, K] times weight [N, K] transposed, plus bias [N]: [M, N]. Throws a TestkitError with code "argument" for sizes that
 * do not fit.
 */
export function linearOracle(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  bias: ArrayLike<number> | undefined,
  { M, K, N }: LinearDims,
): Float64Array {
  requireLength("linearOracle", "x", x, M * K);
  requireLength("linearOracle", "weight", weight, N * K);
  if (bias) requireLength("linearOracle", "bias", bias, N);
  const out = new Float64Array(M * N);
  for (let m = 0; m < M; m++)
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) sum += x[m * K + k]! * weight[n * K + k]!;
      out[m * N + n] = sum + (bias ? bias[n]! : 0);
    }
  return out;
}

/** What {@link linearBackwardOracle} returns. */
export interface LinearOracleGradients {
  /** [M, K] */
  readonly dx: Float64Array;
  /** [N, K] */
  readonly dWeight: Float64Array;
  /** [N] */
  readonly dBias: Float64Array;
}

/** Gradients of sum(dOut * out) for dOut [M, N]. Throws as {@link linearOracle} does. */
export function linearBackwardOracle(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  dOut: ArrayLike<number>,
  { M, K, N }: LinearDims,
): LinearOracleGradients {
  requireLength("linearBackwardOracle", "x", x, M * K);
  requireLength("linearBackwardOracle", "weight", weight, N * K);
  requireLength("linearBackwardOracle", "dOut", dOut, M * N);
  const gradients = {
    dx: new Float64Array(M * K),
    dWeight: new Float64Array(N * K),
    dBias: new Float64Array(N),
  };
  for (let m = 0; m < M; m++)
    for (let n = 0; n < N; n++) {
      const upstream = dOut[m * N + n]!;
      gradients.dBias[n]! += upstream;
      for (let k = 0; k < K; k++) {
        gradients.dx[m * K + k]! += upstream * weight[n * K + k]!;
        gradients.dWeight[n * K + k]! += upstream * x[m * K + k]!;
      }
    }
  return gradients;
}
