/** Tolerances that follow from rounding error. */
import { compare, formatIndex } from "./compare.ts";
import type { FloatDType } from "./dtype.ts";
import { TestkitError } from "./errors.ts";

/** Half the gap between 1 and the next value: the largest relative error of one rounding to nearest. */
export const unitRoundoff: Readonly<Record<FloatDType, number>> = {
  float64: 2 ** -53,
  float32: 2 ** -24,
  float16: 2 ** -11,
  bfloat16: 2 ** -8,
};

/** Unit roundoffs of a dtype as it is stored and as its products are accumulated. */
export interface DTypeTolerance {
  readonly storage: number;
  /** float32 for the 16-bit types, otherwise the dtype itself. */
  readonly accumulation: number;
}

/** The unit roundoffs that an operation in `dtype` works with. */
export function toleranceFor(dtype: FloatDType): DTypeTolerance {
  const accumulation = dtype === "float64" ? unitRoundoff.float64 : unitRoundoff.float32;
  return { storage: unitRoundoff[dtype], accumulation };
}

const conformance: Readonly<Record<FloatDType, { readonly forward: number; readonly gradient: number }>> = {
  float64: { forward: 1e-12, gradient: 1e-12 },
  float32: { forward: 1e-5, gradient: 1e-4 },
  float16: { forward: 2e-3, gradient: 2e-3 },
  bfloat16: { forward: 2e-2, gradient: 2e-2 },
};

/**
 * Tolerance of the conformance vectors, relative to the largest magnitude of the expected tensor. "model" is the
 * forward pass of a model whose own code computed in float32.
 */
export function conformanceTolerance(dtype: FloatDType, of: "forward" | "gradient" | "model"): number {
  if (of === "model") return Math.max(conformance[dtype].forward, 2e-5);
  return conformance[dtype][of];
}

/** Three answers to one question, and the dtype the first two were computed in. */
export interface FusedBoundInput {
  /** What the kernel gave. */
  readonly fused: ArrayLike<number>;
  /** What the composed form gave in the same dtype. */
  readonly composed: ArrayLike<number>;
  /** The float64 oracle on the same (rounded) inputs. */
  readonly oracle: ArrayLike<number>;
  readonly dtype: FloatDType;
  /** Shape, for the message. */
  readonly shape?: readonly number[] | undefined;
  readonly name?: string | undefined;
  /** Allowed multiple of the composed form's error. Default 2; an exception must say why at its call. */
  readonly factor?: number | undefined;
  /**
   * Magnitude of the terms that were summed, where they may cancel to less: roundings are of that size. Default, and at
   * least, the largest |oracle|.
   */
  readonly termScale?: number | undefined;
  /** By how much an error in an intermediate result grows, as a score's does in the softmax. At least 1, the default. */
  readonly conditioning?: number | undefined;
}

/** Outcome of {@link fusedBound}: errors are absolute, the largest over finite elements. */
export interface FusedBound {
  readonly ok: boolean;
  readonly fusedError: number;
  readonly composedError: number;
  readonly floor: number;
  /** factor * composedError + floor. */
  readonly bound: number;
  readonly message: string;
}

/**
 * Judges a kernel by its error: at most `factor` times that of the composed form, plus a floor of one rounding at
 * the store and eight in accumulation, of terms as large as `termScale` says. The floor covers a composed
 * form that happens to be exact; eight roundings is the spread of a different but equally good order of summation.
 * NaNs and infinities of fused and composed must stand where the oracle's do.
 */
export function fusedBound(input: FusedBoundInput): FusedBound {
  const { dtype, shape, name = "fused", factor = 2, termScale = 0, conditioning = 1 } = input;
  const fused = compare(input.fused, input.oracle);
  const composed = compare(input.composed, input.oracle);
  const { storage, accumulation } = toleranceFor(dtype);
  const floor = (storage + 8 * accumulation * conditioning) * Math.max(fused.magnitude, termScale);
  const bound = factor * composed.maxAbs + floor;
  const structural = fused.mismatch ?? composed.mismatch;
  const ok = structural === undefined && fused.maxAbs <= bound;
  const at = formatIndex(structural?.index ?? fused.worstIndex, shape);
  const message = structural
    ? `${name}: ${fused.mismatch ? "fused" : "composed"} ${structural.kind} mismatch at ${at}: ` +
      `got ${structural.actual}, oracle ${structural.expected}`
    : `${name} ${dtype}: fused error ${fused.maxAbs.toExponential(3)} at ${at} ` +
      `(got ${fused.actual}, oracle ${fused.expected}); composed error ${composed.maxAbs.toExponential(3)}, ` +
      `bound ${bound.toExponential(3)}`;
  return { ok, fusedError: fused.maxAbs, composedError: composed.maxAbs, floor, bound, message };
}

/** Throws a TestkitError with code "mismatch" unless {@link fusedBound} holds; returns it otherwise. */
export function assertFusedBound(input: FusedBoundInput): FusedBound {
  const result = fusedBound(input);
  if (!result.ok) throw new TestkitError("mismatch", result.message, { ...result });
  return result;
}
