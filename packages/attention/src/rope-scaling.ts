import { ArgumentError } from "@heed/tensor";
import { positive } from "./check.ts";

/**
 * How a rotation is stretched beyond the context that a model was trained on. Each kind is one member of the
 * union.
 */
export type RopeScaling = NoScaling | LinearScaling | Llama3Scaling;
/** Frequencies as they are. */
export interface NoScaling {
  readonly type: "none";
}
/** Position interpolation (Chen et al. 2023, arXiv:2306.15595): positions divided by `factor`. */
export interface LinearScaling {
  readonly type: "linear";
  readonly factor: number;
}
/**
 * Llama 3.1's rule (Grattafiori et al. 2024, arXiv:2407.21783; Hugging Face `rope_type: "llama3"`): with
 * wavelength w = 2 pi / f and n = originalMaxPositions, f stays where w < n / highFreqFactor, becomes f /
 * factor where w > n / lowFreqFactor, and goes from one to the other in between.
 */
export interface Llama3Scaling {
  readonly type: "llama3";
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalMaxPositions: number;
}
type Kind<T extends RopeScaling["type"]> = Extract<RopeScaling, { readonly type: T }>;
interface Rule<T extends RopeScaling> {
  /** The numbers that it needs, all above 0. */
  readonly needs: readonly Exclude<keyof T, "type">[];
  apply(frequencies: Float64Array, scaling: T): Float64Array;
}

function llama3(frequencies: Float64Array, s: Llama3Scaling): Float64Array {
  return frequencies.map((f) => {
    const turns = (s.originalMaxPositions * f) / (2 * Math.PI); // turns within the original context
    if (turns > s.highFreqFactor) return f;
    if (turns < s.lowFreqFactor) return f / s.factor;
    const share = (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return (1 - share) * (f / s.factor) + share * f;
  });
}
const RULES: { readonly [T in RopeScaling["type"]]: Rule<Kind<T>> } = {
  none: { needs: [], apply: (frequencies) => frequencies },
  linear: { needs: ["factor"], apply: (frequencies, { factor }) => frequencies.map((f) => f / factor) },
  llama3: { needs: ["factor", "lowFreqFactor", "highFreqFactor", "originalMaxPositions"], apply: llama3 },
};
/**
 * Radians per position of each pair, in float64: base^(-2j / rotaryDim) for j < rotaryDim / 2 (Su et al.
 * 2021, arXiv:2104.09864), scaled. Throws ArgumentError for a scaling that it does not know or whose numbers
 * make no sense.
 */
export function ropeFrequencies(rotaryDim: number, base: number, scaling: RopeScaling): Float64Array {
  checkScaling(scaling);
  const plain = Float64Array.from({ length: rotaryDim / 2 }, (_, j) => base ** ((-2 * j) / rotaryDim));
  return (RULES[scaling.type] as Rule<RopeScaling>).apply(plain, scaling);
}
function checkScaling(scaling: RopeScaling): void {
  if (!Object.hasOwn(RULES, scaling.type)) {
    const known = Object.keys(RULES).join(", ");
    throw new ArgumentError(
      `[RotaryEmbedding] scaling.type must be one of ${known}; got ${String(scaling.type)}`,
      { scaling },
    );
  }
  for (const name of RULES[scaling.type].needs) {
    const value = (scaling as unknown as Record<string, number>)[name];
    positive("RotaryEmbedding", `scaling.${name}`, value as number);
  }
  if (scaling.type === "llama3" && scaling.highFreqFactor <= scaling.lowFreqFactor) {
    throw new ArgumentError(
      `[RotaryEmbedding] scaling.highFreqFactor must exceed lowFreqFactor; got ${scaling.highFreqFactor} and ${scaling.lowFreqFactor}`,
      { scaling },
    );
  }
}
