import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { tensor } from "../../ops/create.ts";
import { add, binary, div, maximum, minimum, mul, sub, unary } from "../../ops/elementwise.ts";
import { gather } from "../../ops/gather.ts";
import { max, sum } from "../../ops/reduce.ts";
import type { QuantisedRows } from "./pages.ts";

type RowFormat = QuantisedRows["format"];
/** The largest value that a code stands for. */
const LARGEST: Readonly<Record<RowFormat, number>> = { int8: 127, float8e4m3: 448 };
/** The smallest normal float32. A smaller scale would lose digits, or be 0. */
export const SMALLEST_SCALE: number = 2 ** -126;
/** The number that each E4M3 code stands for (OCP 8-bit Floating Point Specification 1.0): sign, 4 bits of exponent with bias 7, 3 of fraction. */
export const E4M3: Float32Array<ArrayBuffer> = Float32Array.from({ length: 256 }, (_, code) => {
  const exponent = (code >> 3) & 15;
  const fraction = code & 7;
  const size =
    exponent === 0
      ? fraction * 2 ** -9
      : exponent === 15 && fraction === 7
        ? NaN
        : (8 + fraction) * 2 ** (exponent - 10);
  return code & 0x80 ? -size : size;
});

/** float32 x, |x| < 2^22, to the nearest integer, ties to even: past 1.5 * 2^23 a float32 has no fraction. */
export function roundToInteger(x: Tensor<"float32">): Tensor<"float32"> {
  return sub(add(x, 1.5 * 2 ** 23), 1.5 * 2 ** 23);
}
/** |y| <= 448 as E4M3 codes, to nearest, ties to even; as floats. NaN stays NaN. */
function e4m3Codes(y: Tensor<"float32">): Tensor<"float32"> {
  const { engine } = y;
  // Neighbours are 2^(c - 9) apart, c the number of these bounds that |y| reaches, and the codes of a step start at 8 c.
  const bounds = tensor(
    Float32Array.from({ length: 14 }, (_, i) => 2 ** (i - 5)),
    undefined,
    { engine },
  );
  const steps = tensor(
    Float32Array.from({ length: 15 }, (_, c) => 2 ** (c - 9)),
    undefined,
    { engine },
  );
  const size = unary("abs", y) as Tensor<"float32">;
  const reached = cast(binary("lessEqual", bounds, size.unsqueeze(-1)), "float32");
  const c = sum(reached, { axes: [-1] });
  const step = gather(steps, cast(c, "int32"));
  const code = minimum(add(roundToInteger(div(size, step)), mul(c, 8)), 126);
  const zero = tensor([0], [1], { engine });
  return add(code, mul(cast(binary("less", y, zero), "float32"), 128));
}
/**
 * Rows x [..., width] as codes uint8 [..., width] and scales float32 [...]; see {@link QuantisedRows}. The rows are rounded to float32
 * first. A scale is at least {@link SMALLEST_SCALE}.
 */
export function encodeRows(
  x: Tensor<FloatDType>,
  format: RowFormat,
): { readonly codes: Tensor<"uint8">; readonly scales: Tensor<"float32"> } {
  return scope(() => {
    const rows = cast(x, "float32");
    const most = max(unary("abs", rows) as Tensor<"float32">, { axes: [-1], keepDims: true });
    const size = maximum(div(most, LARGEST[format]), SMALLEST_SCALE);
    const scales = add(size, mul(size, 0)); // Infinity * 0 is NaN
    const y = div(rows, scales);
    const codes = format === "int8" ? add(roundToInteger(y), 128) : e4m3Codes(y);
    return { codes: cast(codes, "uint8"), scales: scales.squeeze(-1) };
  });
}
/** codes [..., width] and scales [...] as numbers in `dtype`. */
export function decodeRows<D extends "float32" | "float64">(
  codes: Tensor<"uint8">,
  scales: Tensor<"float32">,
  format: RowFormat,
  dtype: D,
): Tensor<D> {
  return scope(() => {
    const values =
      format === "int8"
        ? sub(cast(codes, dtype) as Tensor<"float32">, 128)
        : (cast(
            gather(tensor(E4M3, undefined, { engine: codes.engine }), cast(codes, "int32")),
            dtype,
          ) as Tensor<"float32">);
    return mul(
      values,
      cast(scales, dtype).unsqueeze(-1) as Tensor as Tensor<"float32">,
    ) as Tensor as Tensor<D>;
  });
}
