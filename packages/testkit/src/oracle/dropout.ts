/**
 * Dropout of attention weights (Srivastava et al. 2014, JMLR 15) by Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), in
 * whole numbers of any size:
 *
 *     repeat 10 times:                                      key (k0, k1), counter (x0, x1, x2, x3), all mod 2^32
 *       (x0, x1, x2, x3) = (hi(M1 x2) ^ x1 ^ k0, lo(M1 x2), hi(M0 x0) ^ x3 ^ k1, lo(M0 x0))
 *       (k0, k1) = (k0 + W0, k1 + W1)
 *
 *     kept(b, h, i, j) = x[j mod 4] >= floor(probability 2^32),  key = seed, counter = (floor(j / 4), i, h, b)
 */
import { requireArgument } from "../errors.ts";

/** Probability that a weight is dropped, and the seed of the choice. */
export interface DropoutOracle {
  readonly probability: number;
  readonly seed: number;
}

const M0 = 0xd2511f53n;
const M1 = 0xcd9e8d57n;
const W0 = 0x9e3779b9n;
const W1 = 0xbb67ae85n;
const low = (x: bigint): bigint => x & 0xffffffffn;

/** The four words of a counter under a 64-bit key. */
export function philoxOracle(counter: readonly number[], key: bigint): number[] {
  let [x0, x1, x2, x3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = [low(key), key >> 32n];
  for (let round = 0; round < 10; round++) {
    const [p0, p1] = [M0 * x0, M1 * x2];
    [x0, x1, x2, x3] = [(p1 >> 32n) ^ x1 ^ k0, low(p1), (p0 >> 32n) ^ x3 ^ k1, low(p0)];
    [k0, k1] = [low(k0 + W0), low(k1 + W1)];
  }
  return [x0, x1, x2, x3].map(Number);
}
/**
 * The factors of a row's weights [Sk]: 0 where dropped, else 1 / (1 - probability); all 1 without dropout. Throws a TestkitError with code
 * "argument" for a probability outside [0, 1).
 */
export function keepFactors(
  dropout: DropoutOracle | undefined,
  [b, h, i]: readonly [number, number, number],
  Sk: number,
): Float64Array {
  const factors = new Float64Array(Sk).fill(1);
  if (dropout === undefined || dropout.probability === 0) return factors;
  const { probability, seed } = dropout;
  requireArgument(
    probability > 0 && probability < 1,
    `[keepFactors] probability must be in [0, 1); got ${probability}`,
    { probability },
  );
  const threshold = Math.floor(probability * 2 ** 32);
  for (let j = 0; j < Sk; j += 4) {
    philoxOracle([j / 4, i, h, b], BigInt(seed))
      .slice(0, Sk - j)
      .forEach((word, w) => (factors[j + w] = word >= threshold ? 1 / (1 - probability) : 0));
  }
  return factors;
}
