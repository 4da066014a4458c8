import { ArgumentError, ShapeError } from "./errors.ts";

/** Lengths of a tensor's axes; `[]` is a scalar. */
export type Shape = readonly number[];
/** Highest rank the engines take. */
export const MAX_RANK = 8;

/** Number of elements of a shape. */
export function sizeOf(shape: Shape): number {
  let n = 1;
  for (const d of shape) n *= d;
  return n;
}
/** Strides, in elements, of a row-major contiguous tensor. */
export function contiguousStrides(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i]!;
  }
  return strides;
}
/** Whether strided elements lie row-major without gaps; axes of length 1 may have any stride. */
export function isContiguous(shape: Shape, strides: readonly number[]): boolean {
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== step) return false;
    step *= shape[i]!;
  }
  return true;
}
/** Throws ShapeError unless every length is a whole number of at least 0, the rank at most 8 and the size exact in a double. */
export function checkShape(shape: Shape, what: string): void {
  if (shape.length > MAX_RANK) {
    throw new ShapeError(`[${what}] rank must be at most ${MAX_RANK}; got shape [${shape.join(", ")}]`, {
      shape,
    });
  }
  for (const d of shape) {
    if (!Number.isSafeInteger(d) || d < 0) {
      throw new ShapeError(
        `[${what}] lengths must be whole numbers of at least 0; got shape [${shape.join(", ")}]`,
        { shape },
      );
    }
  }
  if (!Number.isSafeInteger(sizeOf(shape) * 8)) {
    throw new ShapeError(`[${what}] shape [${shape.join(", ")}] has too many elements`, { shape });
  }
}
/** `axis` counted from the front; throws ShapeError when it is outside -rank .. rank - 1. */
export function normalizeAxis(axis: number, rank: number, what: string): number {
  if (!Number.isInteger(axis) || axis < -rank || axis >= rank) {
    throw new ShapeError(
      `[${what}] axis must be between ${-rank} and ${rank - 1} for rank ${rank}; got ${axis}`,
      { axis, rank },
    );
  }
  return axis < 0 ? axis + rank : axis;
}
/** The common shape of broadcast operands (NumPy rules); throws ShapeError when there is none. */
export function broadcastShapes(a: Shape, b: Shape, what: string): number[] {
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1;
    const y = b[b.length - rank + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) {
      throw new ShapeError(`[${what}] shapes [${a.join(", ")}] and [${b.join(", ")}] do not broadcast`, {
        a,
        b,
      });
    }
    out[i] = x === 1 ? y : x;
  }
  return out;
}
/** Strides that read a tensor of `shape` as `target`: broadcast axes get stride 0. Throws ShapeError when it does not fit. */
export function broadcastStrides(
  shape: Shape,
  strides: readonly number[],
  target: Shape,
  what: string,
): number[] {
  const lead = target.length - shape.length;
  const out = new Array<number>(target.length).fill(0);
  const fail = (): never => {
    throw new ShapeError(
      `[${what}] shape [${shape.join(", ")}] does not broadcast to [${target.join(", ")}]`,
      { shape, target },
    );
  };
  if (lead < 0) fail();
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === target[lead + i]) out[lead + i] = strides[i]!;
    else if (shape[i] !== 1) fail();
  }
  return out;
}
/**
 * Strides that view the same elements under another shape of the same size, or undefined when only a copy could. Follows the
 * rule that each run of old axes with nested strides may be cut anew.
 */
export function reshapeStrides(
  shape: Shape,
  strides: readonly number[],
  target: Shape,
): number[] | undefined {
  if (sizeOf(shape) === 0 || isContiguous(shape, strides)) return contiguousStrides(target);
  const dims: number[] = [];
  const steps: number[] = [];
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === 1) continue;
    const last = dims.length - 1;
    if (last >= 0 && steps[last] === strides[i]! * shape[i]!) {
      dims[last] = dims[last]! * shape[i]!;
      steps[last] = strides[i]!;
    } else {
      dims.push(shape[i]!);
      steps.push(strides[i]!);
    }
  }
  const out = new Array<number>(target.length).fill(0);
  let block = dims.length - 1;
  let inner = 1; // elements of the current block that later target axes already cover
  for (let i = target.length - 1; i >= 0; i--) {
    if (target[i] === 1) continue;
    if (block < 0 || dims[block]! % (inner * target[i]!) !== 0) return undefined;
    out[i] = steps[block]! * inner;
    inner *= target[i]!;
    if (inner === dims[block]) {
      block--;
      inner = 1;
    }
  }
  return out;
}
/** `shape` with its one -1 replaced so that the sizes agree; throws ShapeError when they cannot. */
export function resolveShape(shape: Shape, size: number, what: string): number[] {
  const at = shape.indexOf(-1);
  const known = shape.reduce((n, d, i) => (i === at ? n : n * d), 1);
  const out = shape.slice();
  if (at >= 0) out[at] = known === 0 ? 0 : size / known;
  if (!out.every((d) => Number.isInteger(d) && d >= 0) || sizeOf(out) !== size) {
    throw new ShapeError(`[${what}] cannot view ${size} elements as [${shape.join(", ")}]`, { shape, size });
  }
  return out;
}
/** Throws ArgumentError unless `value` is a whole number in [min, max]. */
export function checkInteger(value: number, min: number, max: number, what: string): void {
  if (!Number.isSafeInteger(value) || value < min || value > max) {
    throw new ArgumentError(`[${what}] must be a whole number from ${min} to ${max}; got ${value}`, {
      value,
      min,
      max,
    });
  }
}
