import type { FloatDType } from "../../core/dtype.ts";
import { ShapeError } from "../../core/errors.ts";
import { allocate, show, type Tensor } from "../../core/tensor.ts";
import { floatOnly, oneEngine, sameDType } from "../../ops/check.ts";
import { type KvAppendPlan, planKvAppend } from "../kv-append/plan.ts";
import type { AppendTarget } from "../paged-attention/reader.ts";
import { checkRmsNorm } from "../rms-norm/plan.ts";
import { checkRope, type RopePlan } from "../rope/plan.ts";
import type { NormOfHeads, NormRopeAppendOptions, RopeOfHeads } from "./options.ts";

declare const checked: unique symbol;
/** Checked projections on their way into a step of attention. Only {@link planNormRopeAppend} makes one. */
export interface NormRopeAppendPlan extends Omit<KvAppendPlan, typeof checked | "kPages" | "vPages"> {
  readonly [checked]: true;
  readonly kPages: Tensor<FloatDType>; // [P, Hkv, pageSize, D]
  readonly vPages: Tensor<FloatDType>; // [P, Hkv, pageSize, Dv]
  readonly q: Tensor<FloatDType>; // [T, Hq, D], any strides; k and v have its dtype
  readonly out: Tensor<FloatDType>; // [T, Hq, D]
  readonly norm: HeadNorms | undefined;
  readonly rope: HeadRotation | undefined;
}
/** Factors in the accumulator's dtype: [D], or [H * D] over all heads of a token; undefined where there is no norm. */
export interface HeadNorms {
  readonly q: Tensor | undefined;
  readonly k: Tensor | undefined;
  readonly eps: number;
  readonly unitOffset: boolean;
}
/** Tables [P, rotaryDim / 2] and their rows [T]. */
export type HeadRotation = Pick<RopePlan, "cos" | "sin" | "positions" | "rotaryDim" | "pairing">;

function checkNorm(q: Tensor, k: Tensor, { eps, unitOffset, ...weights }: NormOfHeads): HeadNorms {
  const parts = [q, k].map((x, i) => {
    const weight = [weights.q, weights.k][i];
    if (weight !== undefined && weight.rank !== 1 && weight.rank !== 2) {
      throw new ShapeError(
        `[normRopeAppend] norm weights must be [D] or [H, D]; got ${show(weight)} for ${show(x)}`,
        { weight: weight.shape, x: x.shape },
      );
    }
    const axis = weight === undefined ? -1 : -weight.rank;
    return weight && checkRmsNorm(x, weight, { eps, unitOffset, axis });
  });
  const some = parts[0] ?? parts[1];
  return {
    q: parts[0]?.weight,
    k: parts[1]?.weight,
    eps: some?.eps ?? 0,
    unitOffset: some?.unitOffset ?? false,
  };
}
function rotation(q: Tensor, { cos, sin, ...options }: RopeOfHeads): HeadRotation {
  const { positions, rotaryDim, pairing } = checkRope(q, cos, sin, options);
  return { cos, sin, positions: positions.select(0, 0), rotaryDim, pairing };
}
/**
 * Checks all parts and allocates the queries. Temporaries belong to the caller's scope. Throws ShapeError, DTypeError, ArgumentError (slot
 * or position out of range, bad eps or pairing), DeviceError, DisposedError, OutOfMemoryError.
 */
export function planNormRopeAppend(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { kPages, vPages, slots }: AppendTarget,
  { norm, rope }: NormRopeAppendOptions,
): NormRopeAppendPlan {
  oneEngine("normRopeAppend", q, k, v, norm?.q, norm?.k, rope?.cos, rope?.sin, rope?.positions);
  floatOnly("normRopeAppend", q);
  sameDType("normRopeAppend", q, k, v);
  oneEngine("normRopeAppend", q, kPages, vPages, slots);
  if (q.rank !== 3 || k.rank !== 3 || q.shape[0] !== k.shape[0] || q.shape[2] !== k.shape[2]) {
    throw new ShapeError(
      `[normRopeAppend] needs q [T, Hq, D] and k [T, Hkv, D]; got q ${show(q)}, k ${show(k)}`,
      { q: q.shape, k: k.shape },
    );
  }
  const append = planKvAppend(k, v, kPages, vPages, slots);
  const norms = norm && checkNorm(q, k, norm);
  const turned = rope && rotation(q, rope);
  const out = allocate(append.engine, q.dtype, q.shape);
  return { q, ...append, norm: norms, rope: turned, out } as unknown as NormRopeAppendPlan;
}
