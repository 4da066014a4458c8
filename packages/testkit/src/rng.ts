/**
 * A small deterministic generator: sfc32 (Chris Doty-Humphrey, PractRand), 128 bits of state, seeded from one
 * number through splitmix32. The same seed gives the same numbers on every platform.
 */
export interface Rng {
  /** The next 32 random bits, as an integer in [0, 2^32). */
  bits(): number;
  /** Uniform in [low, high), by default [0, 1), with 53 random bits. */
  uniform(low?: number, high?: number): number;
  /** An integer, low <= n <= high. */
  int(low: number, high: number): number;
  /** Normally distributed with the given mean (0) and standard deviation (1). */
  normal(mean?: number, deviation?: number): number;
  /** `length` uniform numbers. */
  uniformArray(length: number, low?: number, high?: number): Float64Array;
  /** `length` normal numbers. */
  normalArray(length: number, mean?: number, deviation?: number): Float64Array;
  /** A random order of 0 .. length-1 (Fisher-Yates). */
  permutation(length: number): number[];
}

function splitmix32(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state ^ (state >>> 16);
    z = Math.imul(z, 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  };
}

function sfc32(seed: number): () => number {
  const next = splitmix32(seed);
  let a = next();
  let b = next();
  let c = next();
  let counter = 1;
  return () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
}

/** Makes an {@link Rng} from a seed. */
export function createRng(seed: number): Rng {
  const bits = sfc32(seed);
  const uniform = (low = 0, high = 1): number =>
    low + (high - low) * (((bits() >>> 5) * 0x4000000 + (bits() >>> 6)) / 2 ** 53);
  const int = (low: number, high: number): number => low + Math.floor(uniform() * (high - low + 1));
  // Box-Muller; 1 - u lies in (0, 1], so the logarithm is finite.
  const normal = (mean = 0, deviation = 1): number =>
    mean + deviation * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return {
    bits,
    uniform,
    int,
    normal,
    uniformArray: (length, low, high) => Float64Array.from({ length }, () => uniform(low, high)),
    normalArray: (length, mean, deviation) => Float64Array.from({ length }, () => normal(mean, deviation)),
    permutation(length) {
      const order = Array.from({ length }, (_, i) => i);
      for (let i = length - 1; i > 0; i--) {
        const j = int(0, i);
        [order[i], order[j]] = [order[j]!, order[i]!];
      }
      return order;
    },
  };
}
