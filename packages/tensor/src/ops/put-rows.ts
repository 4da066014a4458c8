import { scope } from "../core/scope.ts";
import type { Tensor } from "../core/tensor.ts";
import { cast } from "./cast.ts";
import { concat } from "./concat.ts";
import { arange } from "./create.ts";
import { add, binary, mul, sub } from "./elementwise.ts";
import { gather } from "./gather.ts";
import { max } from "./reduce.ts";

/**
 * x [N, ...] with rows [T, ...] of its dtype in the places `at` [T] along the first axis, in a new tensor; of two rows for one place the
 * later one stays, and a row whose place is not within 0 .. N - 1 is left out. No value is looked at on the host, and every element is
 * copied bit for bit; it takes memory of N * T integers. For composed forms on devices.
 */
export function withRows(x: Tensor, rows: Tensor, at: Tensor<"int32">): Tensor {
  return scope(() => {
    const { engine } = x;
    const [N, T] = [x.shape[0]!, rows.shape[0]!];
    if (N === 0 || T === 0) return concat([x]);
    const places = arange(0, N, 1, { engine });
    const hit = binary("equal", places.unsqueeze(1), at.unsqueeze(0)); // [N, T]
    // 1 + the last row that goes to each place, 0 where none does.
    const last = max(mul(cast(hit, "int32"), arange(1, T + 1, 1, { engine })), { axes: [1] });
    const from = add(last, N - 1); // among the rows of x and then the new ones
    return gather(concat([x, rows]), choose(binary("less", last, 1) as Tensor<"bool">, places, from));
  });
}
/** a where the mask is true, else b: integers. */
export function choose(mask: Tensor<"bool">, a: Tensor<"int32">, b: Tensor<"int32">): Tensor<"int32"> {
  return scope(() => add(b, mul(cast(mask, "int32"), sub(a, b))));
}
