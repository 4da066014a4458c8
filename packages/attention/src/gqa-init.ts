import { full, randn, type Shape, type Tensor, zeros } from "@heed/tensor";
import { wholeNumber } from "./check.ts";
import { type HeadConfig, parameterShapes } from "./gqa-options.ts";
import { INIT_STD, type InitOptions } from "./layer.ts";

const QKV = ["q_proj", "k_proj", "v_proj"] as const;

/** Slices of one [sum of rows, ...] tensor, one for each shape, in order. */
function cut(
  all: Tensor,
  names: readonly string[],
  shapes: ReadonlyMap<string, Shape>,
  into: Map<string, Tensor>,
): void {
  let at = 0;
  for (const name of names) into.set(name, all.slice(0, at, (at += shapes.get(name)![0]!)));
}
/**
 * Random parameters of a GroupedQueryAttention (see InitOptions): sinks are normal like weights. The q, k and
 * v weights are slices of one tensor, and so are their biases when all three have one, so that one product
 * serves them. Tensors belong to the caller's scope.
 */
export function randomParameters(config: HeadConfig, options: InitOptions): Map<string, Tensor> {
  const { dtype = "float32", engine, seed = 0 } = options;
  const on = { dtype, ...(engine !== undefined && { engine }) };
  wholeNumber("GroupedQueryAttention", "seed", seed, 0, 2 ** 32 - 1);
  const shapes = parameterShapes(config);
  // The generator takes 53 bits: the upper ones tell the streams of one seed apart.
  const normal = (stream: number, shape: Shape): Tensor =>
    randn(shape, { ...on, seed: seed + stream * 2 ** 32, std: INIT_STD });
  const rows = (config.numHeads + 2 * config.numKvHeads) * config.headDim;
  const out = new Map<string, Tensor>();
  cut(
    normal(0, [rows, config.hiddenSize]),
    QKV.map((name) => `${name}.weight`),
    shapes,
    out,
  );
  const biases = QKV.map((name) => `${name}.bias`);
  if (biases.every((name) => shapes.has(name))) cut(zeros([rows], on), biases, shapes, out);
  for (const [name, shape] of shapes) {
    if (out.has(name)) continue;
    if (name === "o_proj.weight") out.set(name, normal(1, shape));
    else if (name === "sinks") out.set(name, normal(2, shape));
    else if (name.endsWith("_norm.weight")) out.set(name, full(shape, config.qkNorm!.unitOffset ? 0 : 1, on));
    else out.set(name, zeros(shape, on));
  }
  return out;
}
