import type { DType } from "../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../core/errors.ts";
import { allocate, show, type Tensor } from "../core/tensor.ts";
import { recheck } from "../engine/recorder.ts";
import { hostIntegers, oneEngine, sameDType } from "./check.ts";

/** Throws ArgumentError when an index is outside 0 .. rows - 1; on a device the kernel's own check stands instead. */
function checkIndices(what: string, indices: Tensor, rows: number): void {
  if (indices.dtype !== "int32" && indices.dtype !== "int64") {
    throw new DTypeError(`[${what}] indices must be int32 or int64; got ${show(indices)}`, {
      dtype: indices.dtype,
    });
  }
  if (indices.engine.device !== "cpu") return;
  checkRange(what, indices, rows);
  recheck([indices], ([given]) => checkRange(what, given!, rows));
}
function checkRange(what: string, indices: Tensor, rows: number): void {
  const data = hostIntegers(indices);
  for (let i = 0; i < data.length; i++) {
    const index = Number(data[i]);
    if (index < 0 || index >= rows) {
      throw new ArgumentError(`[${what}] index ${index} at position ${i} is outside 0..${rows - 1}`, {
        index,
        position: i,
        rows,
      });
    }
  }
}
/**
 * Rows of x [R, ...] by indices of any shape: out[i..., :] = x[indices[i...], :]. Negative indices are errors, not counted from the
 * end. Throws ArgumentError (index out of range), DTypeError, ShapeError, DeviceError.
 */
export function gather<D extends DType>(x: Tensor<D>, indices: Tensor): Tensor<D> {
  const engine = oneEngine("gather", x, indices);
  if (x.rank === 0)
    throw new ShapeError(`[gather] needs at least one axis; got ${show(x)}`, { shape: x.shape });
  checkIndices("gather", indices, x.shape[0]!);
  const rest = x.shape.slice(1);
  using dense = indices.contiguous();
  using flat = dense.reshape([-1]);
  using out = allocate(engine, x.dtype, [flat.size, ...rest]);
  if (out.size > 0) engine.gather(x, flat, out);
  return out.reshape([...indices.shape, ...rest]);
}
/**
 * out[indices[i], ...] += x[i, ...] in ascending i, in place; the gradient of {@link gather}. indices [n], x [n, ...].
 * Throws ArgumentError, DTypeError, ShapeError, DeviceError.
 */
export function scatterAdd(x: Tensor, indices: Tensor, out: Tensor): void {
  const engine = oneEngine("scatterAdd", x, indices, out);
  sameDType("scatterAdd", x, out);
  if (
    x.rank === 0 ||
    indices.rank !== 1 ||
    indices.size !== x.shape[0] ||
    x.shape.slice(1).join() !== out.shape.slice(1).join()
  ) {
    throw new ShapeError(
      `[scatterAdd] needs x [n, ...], indices [n], out [R, ...]; got ${show(x)}, ${show(indices)}, ${show(out)}`,
      {
        x: x.shape,
        indices: indices.shape,
        out: out.shape,
      },
    );
  }
  checkIndices("scatterAdd", indices, out.shape[0]!);
  if (x.size > 0) engine.scatterAdd(x, indices, out);
}
