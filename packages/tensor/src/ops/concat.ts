import type { DType } from "../core/dtype.ts";
import { ArgumentError, ShapeError } from "../core/errors.ts";
import { normalizeAxis } from "../core/shape.ts";
import { allocate, computed, show, type Tensor } from "../core/tensor.ts";
import { oneEngine, sameDType } from "./check.ts";

/** Tensors joined along an axis; other axes must agree. Throws ArgumentError for an empty list, ShapeError, DTypeError, DeviceError. */
export function concat<D extends DType>(tensors: readonly Tensor<D>[], axis = 0): Tensor<D> {
  const [first, ...rest] = tensors;
  if (first === undefined) throw new ArgumentError("[concat] needs at least one tensor", { count: 0 });
  const engine = oneEngine("concat", first, ...rest);
  sameDType("concat", first, ...rest);
  const a = normalizeAxis(axis, first.rank, "concat");
  for (const t of rest) {
    if (t.rank !== first.rank || t.shape.some((n, i) => i !== a && n !== first.shape[i])) {
      throw new ShapeError(`[concat] all axes but ${a} must agree; got ${tensors.map(show).join(", ")}`, {
        axis: a,
      });
    }
  }
  const shape = first.shape.slice();
  shape[a] = tensors.reduce((n, t) => n + t.shape[a]!, 0);
  return computed(allocate(engine, first.dtype, shape) as Tensor<D>, (out) => {
    let at = 0;
    for (const t of tensors) {
      using part = out.slice(a, at, at + t.shape[a]!);
      if (t.size > 0) engine.copy(t, part);
      at += t.shape[a]!;
    }
  });
}
/** x copied into `out` of the same shape, converting to its dtype. Throws ShapeError, DeviceError. */
export function copyInto(x: Tensor, out: Tensor): void {
  const engine = oneEngine("copyInto", x, out);
  if (x.shape.join() !== out.shape.join()) {
    throw new ShapeError(`[copyInto] shapes must agree; got ${show(x)} into ${show(out)}`, {
      x: x.shape,
      out: out.shape,
    });
  }
  if (x.size > 0) engine.copy(x, out);
}
