/**
 * GroupedQueryAttention in float64 from the test kit's oracles, step by step: project, norm every head,
 * rotate, attend, project out.
 */
import { attentionOracle, inverseFrequencies, rmsNormOracle, ropeOracle } from "@heed/testkit";
import type { RopeScaling } from "../../src/index.ts";
import type { Problem, Values } from "./problem.ts";

/** x [rows, in] @ weight^T [in, out] + bias. */
export function linearOracle(
  x: Float64Array,
  weight: Float64Array,
  bias: Float64Array | undefined,
  into: number,
): Float64Array {
  const out = weight.length / into;
  const rows = x.length / into;
  return Float64Array.from({ length: rows * out }, (_, n) => {
    const [row, o] = [Math.floor(n / out), n % out];
    let sum = bias?.[o] ?? 0;
    for (let i = 0; i < into; i++) sum += x[row * into + i]! * weight[o * into + i]!;
    return sum;
  });
}
/**
 * Frequencies under a scaling, by the formulas of the papers (wavelengths, where the library counts turns).
 */
export function scaledFrequencies(base: number, rotaryDim: number, scaling: RopeScaling): Float64Array {
  const plain = inverseFrequencies(base, rotaryDim);
  if (scaling.type === "none") return plain;
  if (scaling.type === "linear") return plain.map((f) => f / scaling.factor);
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions: n } = scaling;
  return plain.map((f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < n / highFreqFactor) return f;
    if (wavelength > n / lowFreqFactor) return f / factor;
    const smooth = (n / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return ((1 - smooth) * f) / factor + smooth * f;
  });
}
function positionsOf({ B, S, positions }: Problem): Float64Array {
  return Float64Array.from({ length: B * S }, (_, t) =>
    typeof positions === "number" ? positions + (t % S) : positions[t]!,
  );
}
function rotated(problem: Problem, heads: Float64Array, H: number): Float64Array {
  const { headDim, rope } = problem.options;
  if (!rope || !("pairing" in rope)) return heads;
  const { rotaryDim = headDim, base = 10000, pairing = "half", scaling = { type: "none" } } = rope;
  const invFreq = scaledFrequencies(base, rotaryDim, scaling);
  return ropeOracle(heads, { H, D: headDim, pairing, rotaryDim, positions: positionsOf(problem), invFreq });
}
/** The layer's output [B, S, hidden]. */
export function gqaOracle(problem: Problem, { x, parameters, mask }: Values): Float64Array {
  const { B, S, options, kvLengths } = problem;
  const { hiddenSize, numHeads, numKvHeads, headDim: D } = options;
  const of = (name: string): Float64Array | undefined => parameters.get(name);
  const heads = (p: string, H: number, normalised: boolean): Float64Array => {
    const projected = linearOracle(x, of(`${p}_proj.weight`)!, of(`${p}_proj.bias`), hiddenSize);
    if (!normalised) return projected;
    const { eps = 1e-6, unitOffset = false } = options.qkNorm ?? {};
    const normed = options.qkNorm
      ? rmsNormOracle(projected, { n: D, eps, unitOffset, weight: of(`${p}_norm.weight`)! }).y
      : projected;
    return rotated(problem, normed, H);
  };
  const { out } = attentionOracle(
    heads("q", numHeads, true),
    heads("k", numKvHeads, true),
    heads("v", numKvHeads, false),
    {
      dims: { B, S, Sk: S, Hq: numHeads, Hkv: numKvHeads, D, Dv: D },
      scale: options.scale ?? undefined,
      softcap: options.softcap ?? undefined,
      isCausal: options.isCausal,
      window: options.window ?? undefined,
      queryOffset: 0,
      kvLengths,
      sinks: of("sinks"),
      mask: mask && {
        kind: problem.mask === "bool" ? "boolean" : "additive",
        at: (b, _h, i, j) => mask[(b * S + i) * S + j]!,
      },
    },
  );
  return linearOracle(out, of("o_proj.weight")!, of("o_proj.bias"), numHeads * D);
}
