import { full, randn, type Shape, sizeOf, type Tensor, zeros } from "@heed/tensor";
import { wholeNumber } from "./check.ts";
import { type HeadConfig, parameterShapes } from "./gqa-options.ts";
import { INIT_STD, type InitOptions } from "./layer.ts";

type Shapes = ReadonlyMap<string, Shape>;

/** Slices of one [sum of rows, ...] tensor, one for each name's shape, in order. */
function cut(all: Tensor, names: readonly string[], shapes: Shapes): (readonly [string, Tensor])[] {
  let at = 0;
  return names.map((name) => [name, all.slice(0, at, (at += shapes.get(name)![0]!))]);
}
/** The shape of the tensor that `names` are slices of; undefined unless the layer has all of them. */
function stacked(names: readonly string[], shapes: Shapes): Shape | undefined {
  const parts = names.map((name) => shapes.get(name));
  if (parts.some((shape) => shape === undefined)) return undefined;
  const rest = parts[0]!.slice(1);
  return [parts.reduce((rows, shape) => rows + sizeOf(shape!), 0) / sizeOf(rest), ...rest];
}
/** The projections that have one input each, so that their weights may be slices of one tensor. */
function groupsOf({ mergedQkv, tiedValue, contextSize }: HeadConfig): readonly (readonly string[])[] {
  if (mergedQkv) return [["qkv_proj"]];
  const kv = tiedValue ? ["k_proj"] : ["k_proj", "v_proj"];
  return contextSize === null ? [["q_proj", ...kv]] : [["q_proj"], kv];
}
/** Streams of one seed: the generator takes 53 bits, and the upper ones tell them apart. */
const STREAMS = { queries: 0, output: 1, sinks: 2, context: 3 } as const;

/**
 * Random parameters of a GroupedQueryAttention (see InitOptions): sinks are normal like weights. The q, k and
 * v weights are slices of one tensor (k and v alone in cross attention), and so are their biases when all of
 * them have one, so that one product serves them. Merged or not, a seed gives the same values. Tensors belong
 * to the caller's scope.
 */
export function randomParameters(config: HeadConfig, options: InitOptions): Map<string, Tensor> {
  const { dtype = "float32", engine, seed = 0 } = options;
  const on = { dtype, ...(engine !== undefined && { engine }) };
  wholeNumber("GroupedQueryAttention", "seed", seed, 0, 2 ** 32 - 1);
  const shapes = parameterShapes(config);
  const normal = (stream: keyof typeof STREAMS, shape: Shape): Tensor =>
    randn(shape, { ...on, seed: seed + STREAMS[stream] * 2 ** 32, std: INIT_STD });
  const out = new Map<string, Tensor>();
  groupsOf(config).forEach((group, g) => {
    const [weights, biases] = ["weight", "bias"].map((part) => group.map((name) => `${name}.${part}`));
    const all = normal(g === 0 ? "queries" : "context", stacked(weights!, shapes)!);
    for (const [name, t] of cut(all, weights!, shapes)) out.set(name, t);
    const rows = stacked(biases!, shapes);
    if (rows !== undefined) for (const [name, t] of cut(zeros(rows, on), biases!, shapes)) out.set(name, t);
  });
  for (const [name, shape] of shapes) {
    if (out.has(name)) continue;
    if (name === "o_proj.weight") out.set(name, normal("output", shape));
    else if (name === "sinks") out.set(name, normal("sinks", shape));
    else if (name.endsWith("_norm.weight")) out.set(name, full(shape, config.qkNorm!.unitOffset ? 0 : 1, on));
    else out.set(name, zeros(shape, on));
  }
  return out;
}
