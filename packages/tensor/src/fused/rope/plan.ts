import { accumulatorOf, type FloatDType } from "../../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../../core/errors.ts";
import { allocate, show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { recheck } from "../../engine/recorder.ts";
import { floatOnly, hostIntegers, int32Only, oneEngine } from "../../ops/check.ts";
import { arange } from "../../ops/create.ts";
import type { RopeOptions } from "./options.ts";

declare const checked: unique symbol;
/** A checked rotation. Only {@link planRope} makes one. */
export interface RopePlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly x: Tensor<FloatDType>; // [B, S, H, D], any strides
  readonly cos: Tensor; // [P, rotaryDim / 2], accumulator dtype of x
  readonly sin: Tensor; // as cos
  readonly positions: Tensor<"int32">; // [B, S]
  readonly out: Tensor<FloatDType>; // as x
  readonly rotaryDim: number;
  readonly pairing: "half" | "interleaved";
  /** Rotate by the negative angle: the backward pass. */
  readonly inverse: boolean;
}
function checkPositions(positions: Tensor, B: number, S: number, rows: number): void {
  int32Only("rope", "positions", positions);
  if (positions.rank !== 2 || positions.shape[0] !== B || positions.shape[1] !== S) {
    throw new ShapeError(
      `[rope] positions must be int32[${B}, ${S}] (batch, tokens); got ${show(positions)}`,
      {
        positions: positions.shape,
      },
    );
  }
  if (positions.engine.device !== "cpu") return;
  checkRows(positions, rows);
  recheck([positions], ([given]) => checkRows(given!, rows));
}
function checkRows(positions: Tensor, rows: number): void {
  const data = hostIntegers(positions) as ArrayLike<number>;
  for (let i = 0; i < data.length; i++) {
    const p = data[i]!;
    if (p < 0 || p >= rows) {
      throw new ArgumentError(
        `[rope] position ${p} is outside the tables of ${rows} rows; build them for more positions`,
        {
          position: p,
          rows,
        },
      );
    }
  }
}
/** The fields of a plan that say how x turns; x as [B, S, H, D]. Throws as {@link planRope}. */
export function checkRope(
  x: Tensor,
  cos: Tensor,
  sin: Tensor,
  o: RopeOptions,
): Pick<RopePlan, "engine" | "x" | "cos" | "sin" | "positions" | "rotaryDim" | "pairing"> {
  const engine = oneEngine("rope", x, cos, sin, o.positions);
  floatOnly("rope", x);
  if (x.rank !== 4 && x.rank !== 3) {
    throw new ShapeError(`[rope] x must be [B, S, H, D], or [T, H, D]; got ${show(x)}`, { x: x.shape });
  }
  const view = (x.rank === 4 ? x : x.unsqueeze(0)) as Tensor<FloatDType>;
  const [B, S, , D] = view.shape as unknown as [number, number, number, number];
  const accumulator = accumulatorOf(view.dtype);
  if (cos.dtype !== accumulator || sin.dtype !== accumulator) {
    throw new DTypeError(
      `[rope] the tables must be ${accumulator} for x ${show(x)}; got cos ${show(cos)}, sin ${show(sin)}`,
      {
        cos: cos.dtype,
        sin: sin.dtype,
      },
    );
  }
  const half = cos.shape[1]!;
  if (cos.rank !== 2 || cos.shape.join() !== sin.shape.join() || 2 * half > D) {
    throw new ShapeError(
      `[rope] cos and sin must be [P, rotaryDim / 2] with rotaryDim <= D = ${D}; got cos ${show(cos)}, sin ${show(sin)}`,
      { cos: cos.shape, sin: sin.shape, D },
    );
  }
  if (o.pairing !== undefined && o.pairing !== "half" && o.pairing !== "interleaved") {
    throw new ArgumentError(`[rope] pairing must be "half" or "interleaved"; got ${String(o.pairing)}`, {
      pairing: o.pairing,
    });
  }
  const given = o.positions?.rank === 1 ? o.positions.broadcastTo([B, o.positions.shape[0]!]) : o.positions;
  const positions = given ?? arange(0, S, 1, { engine }).broadcastTo([B, S]);
  checkPositions(positions, B, S, cos.shape[0]!);
  return { engine, x: view, cos, sin, positions, rotaryDim: 2 * half, pairing: o.pairing ?? "half" };
}
/**
 * Checks a rotation and allocates its result. Temporaries belong to the caller's scope. Throws ShapeError, DTypeError,
 * ArgumentError (position outside the tables), DeviceError, DisposedError, OutOfMemoryError.
 */
export function planRope(
  x: Tensor,
  cos: Tensor,
  sin: Tensor,
  o: RopeOptions,
  inverse: boolean,
): { plan: RopePlan; result: Tensor } {
  const parts = checkRope(x, cos, sin, o);
  const result = allocate(parts.engine, parts.x.dtype, x.shape);
  const out = x.rank === 4 ? result : result.unsqueeze(0);
  return { plan: { ...parts, out, inverse } as unknown as RopePlan, result };
}
