import { ArgumentError } from "../../core/errors.ts";
import type { Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { tensor } from "../../ops/create.ts";
import type { Dropout } from "./options.ts";

/** A resolved {@link Dropout}: a weight is kept when its random word is at least `threshold`, and then multiplied by `factor`. */
export interface DropoutRule {
  /** The seed's low and high 32 bits: Philox's key. */
  readonly key: readonly [low: number, high: number];
  /** probability * 2^32, rounded down. */
  readonly threshold: number;
  /** 1 / (1 - probability). */
  readonly factor: number;
}
/** Checks dropout; undefined when nothing is dropped. Throws ArgumentError. */
export function resolveDropout(dropout: Dropout | undefined): DropoutRule | undefined {
  if (dropout === undefined) return undefined;
  const { probability, seed } = dropout;
  if (!(probability >= 0 && probability < 1)) {
    throw new ArgumentError(
      `[attention] dropout.probability must be at least 0 and below 1; got ${String(probability)}`,
      { probability },
    );
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new ArgumentError(
      `[attention] dropout.seed must be a whole number from 0 to 2^53 - 1; got ${String(seed)}`,
      { seed },
    );
  }
  if (probability === 0) return undefined;
  return {
    key: [seed >>> 0, Math.floor(seed / 2 ** 32)],
    threshold: Math.floor(probability * 2 ** 32),
    factor: 1 / (1 - probability),
  };
}

/** The high 32 bits of the product of two uint32, by halves of 16 bits, since a double holds 53. */
function multiplyHigh(a: number, b: number): number {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carry = (middle & 0xffff) + a0 * b1; // below 2^32
  return (a1 * b1 + Math.floor(middle / 0x10000) + (carry >>> 16)) >>> 0;
}
/**
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, doi:10.1145/2063384.2063405): four random words, a pure function of a counter of four
 * uint32 and a key of two. Written to `words`.
 */
export function philox(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
  words: Uint32Array,
): void {
  let [x0, x1, x2, x3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(0xd2511f53, x0);
    const high2 = multiplyHigh(0xcd9e8d57, x2);
    const low0 = Math.imul(0xd2511f53, x0) >>> 0;
    const low2 = Math.imul(0xcd9e8d57, x2) >>> 0;
    [x0, x1, x2, x3] = [(high2 ^ x1 ^ k0) >>> 0, low2, (high0 ^ x3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0; // the golden ratio and sqrt(3) - 1
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
}
/**
 * Which weights stay: bool [B, Hq, S, Sk]. Key j of query i, head h and batch b has word j % 4 of the counter (floor(j / 4), i, h, b), so
 * no engine, tile or number of threads changes it. For the composed form, which holds scores of that size anyway.
 */
export function keepMask(
  rule: DropoutRule,
  { B, Hq, S, Sk }: { readonly B: number; readonly Hq: number; readonly S: number; readonly Sk: number },
  engine: Engine,
): Tensor<"bool"> {
  const keep = new Uint8Array(B * Hq * S * Sk);
  const words = new Uint32Array(4);
  let at = 0;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < Hq; h++)
      for (let i = 0; i < S; i++)
        for (let j = 0; j < Sk; j++) {
          if (j % 4 === 0) philox([Math.floor(j / 4), i, h, b], rule.key, words);
          keep[at++] = words[j % 4]! >= rule.threshold ? 1 : 0;
        }
  return tensor(keep, [B, Hq, S, Sk], { dtype: "bool", engine });
}
