import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { concat } from "../../ops/concat.ts";
import { zeros } from "../../ops/create.ts";
import { add, div, maximum, minimum, mul, sub } from "../../ops/elementwise.ts";
import { max, min } from "../../ops/reduce.ts";
import { GROUP, groupsOf, type PageRole, type QuantisedGroups } from "./pages.ts";
import { roundToInteger, SMALLEST_SCALE } from "./rows.ts";

/** Codes of a page, with the scales and zeros of its groups. */
export interface Encoded {
  readonly codes: Tensor<"uint8">;
  readonly scales: Tensor<"float32">;
  readonly zeros: Tensor<"float32">;
}
/** Scales and zeros over one axis of x, kept with length 1. A group that holds NaN or Infinity, or spans more than float32 can, gets NaN. */
function limits(x: Tensor<"float32">, axis: number): { scale: Tensor<"float32">; zero: Tensor<"float32"> } {
  const low = min(x, { axes: [axis], keepDims: true });
  const span = sub(max(x, { axes: [axis], keepDims: true }), low);
  const nothing = mul(span, 0); // NaN where the span is not finite
  return { scale: add(maximum(div(span, 15), SMALLEST_SCALE), nothing), zero: add(low, nothing) };
}
/** The nearest of 16 steps, ties to even; 0 in a group that is NaN. */
function nearest(x: Tensor<"float32">, scale: Tensor<"float32">, zero: Tensor<"float32">): Tensor<"float32"> {
  const steps = minimum(roundToInteger(div(sub(x, zero), scale)), 15);
  return cast(cast(steps, "uint8"), "float32");
}
/** x with zeros after the last axis, up to whole groups: [..., groups, 32]. */
function padded(x: Tensor<"float32">): Tensor<"float32"> {
  const width = x.shape.at(-1)!;
  const groups = groupsOf(width);
  const rest = [...x.shape.slice(0, -1), groups * GROUP - width];
  const whole = concat([x, zeros(rest, { engine: x.engine })], -1);
  return whole.reshape([...x.shape.slice(0, -1), groups, GROUP]);
}
/** Codes 0 .. 15 as floats [..., groups, 32] to bytes [..., 16 * groups]. */
function pack(codes: Tensor<"float32">): Tensor<"uint8"> {
  const half = GROUP / 2;
  const bytes = cast(add(codes.slice(-1, 0, half), mul(codes.slice(-1, half), 16)), "uint8");
  return bytes.reshape([...codes.shape.slice(0, -2), -1]);
}
/** bytes [..., 16 * groups] to codes [..., groups, 32]. */
function unpack<D extends "float32" | "float64">(bytes: Tensor<"uint8">, dtype: D): Tensor<"float32"> {
  const wide = cast(bytes, dtype) as Tensor as Tensor<"float32">;
  const high = cast(cast(mul(wide, 1 / 16), "uint8"), dtype) as Tensor as Tensor<"float32">;
  const low = sub(wide, mul(high, 16));
  const shape = [...bytes.shape.slice(0, -1), -1, GROUP / 2];
  return concat([low.reshape(shape), high.reshape(shape)], -1);
}
/** Full pages x [n, Hkv, pageSize, width] as "int4": see {@link QuantisedGroups}. */
export function encodeGroups(x: Tensor, role: PageRole): Encoded {
  return scope(() => {
    const rows = cast(x, "float32").contiguous();
    const [n, Hkv, pageSize, width] = rows.shape as unknown as [number, number, number, number];
    if (role === "keys") {
      const tokens = rows.reshape([n, Hkv, groupsOf(pageSize), -1, width]);
      const { scale, zero } = limits(tokens, 3);
      const codes = nearest(tokens, scale, zero).reshape([n, Hkv, pageSize, width]);
      return { codes: pack(padded(codes)), scales: scale.squeeze(3), zeros: zero.squeeze(3) };
    }
    const parts = Array.from({ length: groupsOf(width) }, (_, g) => {
      const part = rows.slice(-1, g * GROUP, Math.min(width, (g + 1) * GROUP));
      const { scale, zero } = limits(part, 3); // [n, Hkv, pageSize, 1]
      return { scale, zero, codes: nearest(part, scale, zero) };
    });
    const join = (name: "scale" | "zero"): Tensor<"float32"> =>
      concat(
        parts.map((p) => p[name].transpose(2, 3)),
        2,
      );
    const codes = concat(
      parts.map((p) => p.codes),
      -1,
    );
    return { codes: pack(padded(codes)), scales: join("scale"), zeros: join("zero") };
  });
}
/** Encoded pages [n, ...] as numbers [n, Hkv, pageSize, width] in `dtype`. */
export function decodeGroups<D extends "float32" | "float64">(
  { codes, scales, zeros }: Encoded | QuantisedGroups,
  role: PageRole,
  width: number,
  dtype: D,
): Tensor<D> {
  return scope(() => {
    const [n, Hkv, pageSize] = codes.shape as unknown as [number, number, number];
    const [scale, zero] = [scales, zeros].map((t) => cast(t, dtype) as Tensor as Tensor<"float32">);
    const steps = unpack(codes, dtype); // [n, Hkv, pageSize, groups, 32]
    if (role === "values") {
      const each = (t: Tensor<"float32">): Tensor<"float32"> => t.transpose(2, 3).unsqueeze(-1);
      const x = add(mul(steps, each(scale!)), each(zero!));
      return x.reshape([n, Hkv, pageSize, -1]).slice(-1, 0, width) as Tensor as Tensor<D>;
    }
    const tokens = steps.reshape([n, Hkv, pageSize, -1]).slice(-1, 0, width).contiguous();
    const grouped = tokens.reshape([n, Hkv, groupsOf(pageSize), -1, width]);
    const x = add(mul(grouped, scale!.unsqueeze(3)), zero!.unsqueeze(3));
    return x.reshape([n, Hkv, pageSize, width]) as Tensor as Tensor<D>;
  });
}
