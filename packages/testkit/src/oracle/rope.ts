/**
 * Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in float64:
 *
 *     angle = position * invFreq[j],  j < rotaryDim / 2
 *     y1 = x1 cos - x2 sin;  y2 = x2 cos + x1 sin          cos and sin times attentionFactor
 *
 * for the pairs (j, j + rotaryDim / 2), "half", or (2j, 2j + 1), "interleaved". Elements from rotaryDim on pass
 * through. The gradient is the transposed rotation: dx1 = dy1 cos + dy2 sin; dx2 = dy2 cos - dy1 sin.
 */
import { requireArgument, requireLength } from "../errors.ts";

/** Which elements of a head form a pair. */
export type RopePairing = "half" | "interleaved";

/** How {@link ropeTableOracle} reads x and the tables. */
export interface RopeTableOptions {
  /** Heads per token. */
  readonly H: number;
  /** Head size. */
  readonly D: number;
  readonly pairing: RopePairing;
  /** Elements rotated, even, at most D. Default D. */
  readonly rotaryDim?: number | undefined;
}

/** How {@link ropeOracle} rotates. */
export interface RopeOracleOptions extends RopeTableOptions {
  /** Position of each token [tokens]. */
  readonly positions: ArrayLike<number>;
  /** Radians per position of each pair [rotaryDim / 2]. */
  readonly invFreq: ArrayLike<number>;
  /** Multiplies cos and sin. Default 1. */
  readonly attentionFactor?: number | undefined;
}

/** base^(-2j / rotaryDim) for j < rotaryDim / 2. */
export function inverseFrequencies(base: number, rotaryDim: number): Float64Array {
  return Float64Array.from({ length: rotaryDim / 2 }, (_, j) => base ** ((-2 * j) / rotaryDim));
}

/**
 * Rotates x [tokens, H, D] by explicit tables cos and sin [tokens, rotaryDim / 2], which need not lie on the unit
 * circle. Throws a TestkitError with code "argument" for sizes that do not fit.
 */
export function ropeTableOracle(
  x: ArrayLike<number>,
  cos: ArrayLike<number>,
  sin: ArrayLike<number>,
  options: RopeTableOptions,
): Float64Array {
  const { H, D, pairing, rotaryDim = D } = options;
  const half = rotaryDim / 2;
  requireArgument(
    Number.isInteger(half) && half >= 0 && rotaryDim <= D,
    `[ropeOracle] rotaryDim must be even and at most ${D}; got ${rotaryDim}`,
    { rotaryDim, D },
  );
  const tokens = x.length / (H * D);
  requireArgument(
    Number.isInteger(tokens),
    `[ropeOracle] x must have whole tokens of ${H * D} elements; got ${x.length}`,
    { length: x.length, H, D },
  );
  requireLength("ropeOracle", "cos", cos, tokens * half);
  requireLength("ropeOracle", "sin", sin, tokens * half);
  const y = Float64Array.from(x);
  for (let t = 0; t < tokens; t++)
    for (let h = 0; h < H; h++)
      for (let j = 0; j < half; j++) {
        const at = (t * H + h) * D;
        const first = at + (pairing === "half" ? j : 2 * j);
        const second = at + (pairing === "half" ? j + half : 2 * j + 1);
        const c = cos[t * half + j]!;
        const s = sin[t * half + j]!;
        y[first] = x[first]! * c - x[second]! * s;
        y[second] = x[second]! * c + x[first]! * s;
      }
  return y;
}

function rotate(x: ArrayLike<number>, options: RopeOracleOptions, direction: 1 | -1): Float64Array {
  const { H, D, rotaryDim = D, positions, invFreq, attentionFactor = 1 } = options;
  const half = rotaryDim / 2;
  requireLength("ropeOracle", "invFreq", invFreq, half);
  requireLength("ropeOracle", "positions", positions, x.length / (H * D));
  const angle = (_: unknown, n: number): number => positions[Math.floor(n / half)]! * invFreq[n % half]!;
  const angles = Float64Array.from({ length: positions.length * half }, angle);
  const cos = angles.map((a) => attentionFactor * Math.cos(a));
  const sin = angles.map((a) => attentionFactor * Math.sin(a) * direction);
  return ropeTableOracle(x, cos, sin, options);
}

/**
 * Rotates x [tokens, H, D] at the given positions. Returns the same shape. Throws a TestkitError with code
 * "argument" for sizes that do not fit.
 */
export function ropeOracle(x: ArrayLike<number>, options: RopeOracleOptions): Float64Array {
  return rotate(x, options, 1);
}

/**
 * Gradient of {@link ropeOracle} with respect to x, for dy [tokens, H, D]: the rotation by the negative angle at
 * the same positions, times attentionFactor.
 */
export function ropeBackwardOracle(dy: ArrayLike<number>, options: RopeOracleOptions): Float64Array {
  return rotate(dy, options, -1);
}
