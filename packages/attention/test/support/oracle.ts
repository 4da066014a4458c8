/**
 * GroupedQueryAttention in float64 from the test kit's oracles, step by step: project, norm, rotate, put behind
 * the past, attend, project out.
 */
import { attentionOracle, rmsNormOracle, ropeOracle } from "@heed/testkit";
import { freshRows, keyRows, type Problem, type Values } from "./problem.ts";
import { scaledRotation } from "./rope-oracle.ts";

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
/** Heads [B, n, H, D] turned at their positions, one for each row; one number is the first row's. */
function rotated(
  { B, options }: Problem,
  heads: Float64Array,
  H: number,
  positions: number | readonly number[],
): Float64Array {
  const { headDim, rope } = options;
  if (!rope || !("pairing" in rope)) return heads;
  const { rotaryDim = headDim, base = 10000, pairing = "half", scaling = { type: "none" } } = rope;
  const rows = heads.length / (H * headDim);
  const at = Float64Array.from({ length: rows }, (_, t) =>
    typeof positions === "number" ? positions + (t % (rows / B)) : positions[t]!,
  );
  const rotation = scaledRotation(base, rotaryDim, scaling, Math.max(0, ...at) + 1);
  return ropeOracle(heads, { H, D: headDim, pairing, rotaryDim, positions: at, ...rotation });
}
/** Weight and bias of q, k or v, cut from the merged ones where the layer has those. */
function projectionOf({ options }: Problem, { parameters }: Values, which: "q" | "k" | "v"): Projection {
  const { numHeads, numKvHeads, headDim, mergedQkv, tiedValue, hiddenSize, contextSize } = options;
  const name = which === "v" && tiedValue ? "k" : which;
  const into = which === "q" ? hiddenSize : (contextSize ?? hiddenSize);
  if (!mergedQkv)
    return {
      weight: parameters.get(`${name}_proj.weight`)!,
      bias: parameters.get(`${name}_proj.bias`),
      into,
    };
  const from = { q: 0, k: numHeads, v: numHeads + numKvHeads }[name] * headDim;
  const to = from + (name === "q" ? numHeads : numKvHeads) * headDim;
  const weight = parameters.get("qkv_proj.weight")!.slice(from * into, to * into);
  return { weight, bias: parameters.get("qkv_proj.bias")?.slice(from, to), into };
}
interface Projection {
  readonly weight: Float64Array;
  readonly bias: Float64Array | undefined;
  readonly into: number;
}
function normalised({ options }: Problem, { parameters }: Values, rows: Float64Array, which: "q" | "k") {
  if (!options.qkNorm) return rows;
  const { eps = 1e-6, unitOffset = false, over = "head" } = options.qkNorm;
  const H = which === "q" ? options.numHeads : options.numKvHeads;
  const n = over === "head" ? options.headDim : H * options.headDim;
  return rmsNormOracle(rows, { n, eps, unitOffset, weight: parameters.get(`${which}_norm.weight`)! }).y;
}
/** Rows of a past and of a call, P + F in all, and how many of the past each sequence uses. */
export interface RowCounts {
  readonly B: number;
  readonly P: number;
  readonly F: number;
  readonly lengths: readonly number[] | undefined;
}
/** Rows of [past, fresh] by sequence: token j of a sequence is row j, its past first; what is not in use is 0. */
export function joinedOracle(
  { B, P, F, lengths }: RowCounts,
  past: ArrayLike<number> | undefined,
  fresh: ArrayLike<number>,
  n: number,
): Float64Array {
  const Sk = P + F;
  const out = new Float64Array(B * Sk * n);
  for (let b = 0; b < B; b++) {
    const used = lengths?.[b] ?? P;
    for (let i = 0; i < used * n; i++) out[b * Sk * n + i] = past![b * P * n + i]!;
    for (let i = 0; i < F * n; i++) out[(b * Sk + used) * n + i] = fresh[b * F * n + i]!;
  }
  return out;
}
function joined(problem: Problem, past: ArrayLike<number> | undefined, fresh: ArrayLike<number>, n: number) {
  const { B, past: given } = problem;
  const counts = { B, P: given?.P ?? 0, F: freshRows(problem), lengths: given?.lengths };
  return joinedOracle(counts, past, fresh, n);
}
/** The layer's output [B, S, hidden]. */
export function gqaOracle(problem: Problem, values: Values): Float64Array {
  const { B, S, options, kvLengths, past, documents } = problem;
  const { numHeads, numKvHeads, headDim: D, contextSize } = options;
  const { x, parameters, mask } = values;
  const isCross = Boolean(contextSize);
  const project = (which: "q" | "k" | "v"): Float64Array => {
    const { weight, bias, into } = projectionOf(problem, values, which);
    const source = which === "q" || !isCross ? x : (values.context ?? new Float64Array(0));
    return linearOracle(source, weight, bias, into);
  };
  const q = rotated(problem, normalised(problem, values, project("q"), "q"), numHeads, problem.positions);
  const k0 = normalised(problem, values, project("k"), "k");
  const at = isCross ? (problem.context?.position ?? 0) : problem.positions;
  const k = isCross && !options.rotateContext ? k0 : rotated(problem, k0, numKvHeads, at);
  const Sk = keyRows(problem);
  const starts = Array.from({ length: B }, (_, b) => past?.lengths?.[b] ?? past?.P ?? 0);
  const keyDocuments =
    documents && joined(problem, documents.past, isCross ? documents.context : documents.x, 1);
  const isBoolean = problem.mask !== "float";
  const maskAt = (b: number, i: number, j: number): number => {
    const other = documents && documents.x[b * S + i] !== keyDocuments![b * Sk + j];
    if (other) return isBoolean ? 0 : -Infinity;
    return mask ? mask[(b * S + i) * Sk + j]! : 1;
  };
  const { out } = attentionOracle(
    q,
    joined(problem, values.past?.k, k, numKvHeads * D),
    joined(problem, values.past?.v, project("v"), numKvHeads * D),
    {
      dims: { B, S, Sk, Hq: numHeads, Hkv: numKvHeads, D, Dv: D },
      scale: options.scale ?? undefined,
      softcap: options.softcap ?? undefined,
      isCausal: options.isCausal,
      window: options.window ?? undefined,
      queryOffset: isCross ? 0 : starts,
      kvLengths: starts.map((start, b) => start + (kvLengths?.[b] ?? freshRows(problem))),
      sinks: parameters.get("sinks"),
      mask: (mask ?? documents) && {
        kind: isBoolean ? "boolean" : "additive",
        at: (b, _h, i, j) => maskAt(b, i, j),
      },
    },
  );
  return linearOracle(out, parameters.get("o_proj.weight")!, parameters.get("o_proj.bias"), numHeads * D);
}
