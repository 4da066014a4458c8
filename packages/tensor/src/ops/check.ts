import { DTYPES, isFloat, type DType } from "../core/dtype.ts";
import { DeviceError, DTypeError } from "../core/errors.ts";
import { show, type Tensor } from "../core/tensor.ts";
import type { Engine } from "../engine/engine.ts";
import { requireRecordable } from "../engine/recorder.ts";

/** Throws unless every operand is alive and lives on one engine; returns that engine. Undefined operands are passed over. */
export function oneEngine(what: string, first: Tensor, ...rest: readonly (Tensor | undefined)[]): Engine {
  first.check();
  for (const t of rest) {
    if (t === undefined) continue;
    t.check();
    if (t.engine !== first.engine) {
      throw new DeviceError(
        `[${what}] operands live on different engines: ${show(first)} on "${first.engine.name}", ${show(t)} on "${t.engine.name}"; move one with toEngine()`,
        { engines: [first.engine.name, t.engine.name] },
      );
    }
  }
  requireRecordable(what, first.engine);
  return first.engine;
}
/**
 * The elements of an int32 or int64 tensor on the host, row-major: its own memory where it is contiguous. For checks of values, which a
 * tape repeats through {@link recheck}: other than `data`, it does not bind a replay to the values. Throws DeviceError, DisposedError,
 * ShapeError for a view that spans more than 4 GiB.
 */
export function hostIntegers(t: Tensor): ArrayLike<number | bigint> {
  t.check();
  const { array, bytes } = DTYPES[t.dtype as "int32" | "int64"];
  const isEmpty = t.size === 0; // and may lie past the end
  const at = isEmpty ? 0 : t.offset * bytes;
  const span = isEmpty ? 0 : t.shape.reduce((sum, n, axis) => sum + (n - 1) * t.strides[axis]!, 1);
  const part = t.storage.hostPart(at, span * bytes);
  if (part === undefined)
    throw new DeviceError(`[hostIntegers] the memory of engine "${t.engine.name}" is not on the host`);
  const memory = new array(part.buffer, at - part.start, span) as Int32Array;
  if (t.isContiguous) return memory;
  let indices = [0];
  t.shape.forEach((n, axis) => {
    indices = indices.flatMap((base) => Array.from({ length: n }, (_, i) => base + i * t.strides[axis]!));
  });
  return indices.map((i) => memory[i]!);
}
/** Throws DTypeError unless all tensors have the first one's dtype. */
export function sameDType(what: string, first: Tensor, ...rest: readonly (Tensor | undefined)[]): void {
  for (const t of rest) {
    if (t !== undefined && t.dtype !== first.dtype) {
      throw new DTypeError(
        `[${what}] operands must have one dtype; got ${show(first)} and ${show(t)}; convert with cast()`,
        {
          dtypes: [first.dtype, t.dtype],
        },
      );
    }
  }
}
/** Throws DTypeError unless the dtype is int32. */
export function int32Only(what: string, name: string, t: Tensor): void {
  if (t.dtype === "int32") return;
  throw new DTypeError(`[${what}] ${name} must be int32; got ${show(t)}; convert with cast()`, {
    [name]: t.dtype,
  });
}
/** Throws DTypeError unless the dtype is a float. */
export function floatOnly(what: string, t: Tensor): void {
  if (!isFloat(t.dtype)) {
    throw new DTypeError(
      `[${what}] needs a float dtype (${Object.keys(DTYPES)
        .filter((d) => isFloat(d as DType))
        .join(", ")}); got ${show(t)}`,
      {
        dtype: t.dtype,
      },
    );
  }
}
