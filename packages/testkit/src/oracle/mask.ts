import { requireArgument, requireLength } from "../errors.ts";
import type { AttentionDims, OracleMask } from "./attention-problem.ts";

/** Strides with which a shape broadcasts, right-aligned, to `full`: 0 where the shape is absent or 1. */
function broadcastStrides(shape: readonly number[], full: readonly number[]): number[] {
  requireArgument(
    shape.length <= full.length,
    `[broadcast] at most ${full.length} axes; got [${shape.join(", ")}]`,
    { shape },
  );
  const strides = full.map(() => 0);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const target = full.length - shape.length + axis;
    const size = shape[axis]!;
    requireArgument(
      size === 1 || size === full[target],
      `[broadcast] [${shape.join(", ")}] does not broadcast to [${full.join(", ")}]`,
      { shape, full },
    );
    strides[target] = size === 1 ? 0 : stride;
    stride *= size;
  }
  return strides;
}

/**
 * A mask from row-major data whose shape broadcasts, right-aligned, to [B, Hq, S, Sk]. Throws a TestkitError with
 * code "argument" if it does not, or if the data has another length than the shape.
 */
export function broadcastMask(
  kind: OracleMask["kind"],
  data: ArrayLike<number>,
  shape: readonly number[],
  dims: AttentionDims,
): OracleMask {
  const [sb, sh, si, sj] = broadcastStrides(shape, [dims.B, dims.Hq, dims.S, dims.Sk]);
  requireLength(
    "broadcastMask",
    "data",
    data,
    shape.reduce((a, n) => a * n, 1),
  );
  return { kind, at: (b, h, i, j) => data[b * sb! + h * sh! + i * si! + j * sj!]! };
}

/** Sums a full [B, Hq, S, Sk] gradient over the axes that `shape` broadcasts: the gradient of the mask itself. */
export function sumToMaskShape(
  full: ArrayLike<number>,
  shape: readonly number[],
  dims: AttentionDims,
): Float64Array {
  const { B, Hq, S, Sk } = dims;
  const [sb, sh, si, sj] = broadcastStrides(shape, [B, Hq, S, Sk]);
  requireLength("sumToMaskShape", "full", full, B * Hq * S * Sk);
  const sum = new Float64Array(shape.reduce((a, n) => a * n, 1));
  for (let b = 0; b < B; b++)
    for (let h = 0; h < Hq; h++)
      for (let i = 0; i < S; i++)
        for (let j = 0; j < Sk; j++)
          sum[b * sb! + h * sh! + i * si! + j * sj!]! += full[((b * Hq + h) * S + i) * Sk + j]!;
  return sum;
}
