/**
 * Rotary scalings in float64, from the papers and the meaning of Hugging Face's configuration fields, by other
 * routes than the library's: wavelengths where it counts turns, bisection where it solves for a pair.
 */
import { inverseFrequencies } from "@heed/testkit";
import type { RopeScaling, YarnScaling } from "../../src/index.ts";

/** Radians per position of each pair, and what cosines and sines are multiplied by. */
export interface ScaledRotation {
  readonly invFreq: Float64Array;
  readonly attentionFactor: number;
}
/** The real pair number whose component makes `turns` turns over n positions: n / wavelength falls with it. */
function pairTurning(turns: number, base: number, rotaryDim: number, n: number): number {
  let [low, high] = [-1e4, 1e4];
  for (let i = 0; i < 200; i++) {
    const middle = (low + high) / 2;
    const logWavelength = Math.log(2 * Math.PI) + (2 * middle * Math.log(base)) / rotaryDim;
    if (Math.log(n) - logWavelength > Math.log(turns)) low = middle;
    else high = middle;
  }
  return low;
}
function yarnFrequencies(base: number, rotaryDim: number, s: YarnScaling): Float64Array {
  const n = s.originalMaxPositions;
  let low = pairTurning(s.betaFast ?? 32, base, rotaryDim, n);
  let high = pairTurning(s.betaSlow ?? 1, base, rotaryDim, n);
  if (s.truncate ?? true) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, rotaryDim - 1)];
  return inverseFrequencies(base, rotaryDim).map((f, j) => {
    let share = Math.max(0, Math.min(1, (j - low) / (high - low)));
    if (low === high) share = Number(j > low);
    if (low > high) share = Number((n * f) / (2 * Math.PI) < (s.betaSlow ?? 1)); // no pair is on the ramp
    return (1 / ((1 / f) * s.factor)) * share + f - f * share;
  });
}
function yarnFactor(s: YarnScaling): number {
  if (s.attentionFactor !== undefined) return s.attentionFactor;
  const log = Math.max(0, Math.log(s.factor));
  if (s.mscale && s.mscaleAllDim) return (1 + 0.1 * s.mscale * log) / (1 + 0.1 * s.mscaleAllDim * log);
  return 1 + 0.1 * log;
}
/** The rotation when `length` positions are in use. */
export function scaledRotation(
  base: number,
  rotaryDim: number,
  scaling: RopeScaling,
  length: number,
): ScaledRotation {
  const plain = inverseFrequencies(base, rotaryDim);
  const exponent = rotaryDim / (rotaryDim - 2);
  switch (scaling.type) {
    case "none":
      return { invFreq: plain, attentionFactor: 1 };
    case "linear":
      return { invFreq: plain.map((f) => f / scaling.factor), attentionFactor: 1 };
    case "ntk":
      return {
        invFreq: plain.map((f, j) => f * scaling.factor ** ((-2 * j) / (rotaryDim - 2))),
        attentionFactor: 1,
      };
    case "dynamic": {
      const { factor, originalMaxPositions: n } = scaling;
      const used = Math.max(scaling.length ?? length, n);
      const grown = base * (1 + (factor * (used - n)) / n) ** exponent;
      return { invFreq: inverseFrequencies(grown, rotaryDim), attentionFactor: 1 };
    }
    case "yarn":
      return { invFreq: yarnFrequencies(base, rotaryDim, scaling), attentionFactor: yarnFactor(scaling) };
    case "llama3": {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions: n } = scaling;
      const invFreq = plain.map((f) => {
        const wavelength = (2 * Math.PI) / f;
        if (wavelength < n / highFreqFactor) return f;
        if (wavelength > n / lowFreqFactor) return f / factor;
        const smooth = (n / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
        return ((1 - smooth) * f) / factor + smooth * f;
      });
      return { invFreq, attentionFactor: 1 };
    }
    case "longrope": {
      const { originalMaxPositions: n, factor } = scaling;
      const list = (scaling.length ?? length) > n ? scaling.longFactor : scaling.shortFactor;
      const log = Math.max(0, Math.log(factor)) / Math.log(n);
      return {
        invFreq: plain.map((f, j) => f / list[j]!),
        attentionFactor: scaling.attentionFactor ?? Math.sqrt(1 + log),
      };
    }
  }
}
