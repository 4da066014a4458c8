/** Random strided views: the same values under another axis order, with gaps and margins around them. */
import fc from "fast-check";
import type { Arbitrary } from "fast-check";
import { requireLength } from "../errors.ts";

/** How a tensor of a shape lies inside a larger contiguous base. Lists are indexed by the axes of `shape`. */
export interface ViewRecipe {
  readonly shape: readonly number[];
  /** Axes of the shape from outermost to innermost in memory. */
  readonly order: readonly number[];
  /** Unused elements before the first index of an axis. */
  readonly before: readonly number[];
  /** Unused elements after the last. */
  readonly after: readonly number[];
  /** Distance of neighbouring indices along an axis; 1 is dense. */
  readonly step: readonly number[];
}

/** A {@link ViewRecipe} worked out: slice the base per axis, then permute, or use offset and strides directly. */
export interface ViewLayout {
  /** Shape of the contiguous base, in memory order. */
  readonly baseShape: readonly number[];
  /** Slice of each base axis: start, start + step, ... below stop. */
  readonly slices: readonly { readonly start: number; readonly stop: number; readonly step: number }[];
  /** Axis i of the view is axis permutation[i] of the sliced base. */
  readonly permutation: readonly number[];
  /** Elements between neighbours along each axis of the view. */
  readonly strides: readonly number[];
  /** Element of the base at index 0, 0, ... of the view. */
  readonly offset: number;
  /** Elements of the base. */
  readonly length: number;
}

/** Works out where a recipe puts the elements. */
export function viewLayout(recipe: ViewRecipe): ViewLayout {
  const { shape, order, before, after, step } = recipe;
  const slices = order.map((axis) => {
    const start = before[axis]!;
    return { start, stop: start + (shape[axis]! - 1) * step[axis]! + 1, step: step[axis]! };
  });
  const baseShape = order.map((axis, a) => slices[a]!.stop + after[axis]!);
  const strides = shape.map(() => 0);
  let offset = 0;
  let length = 1;
  for (let a = order.length - 1; a >= 0; a--) {
    strides[order[a]!] = length * slices[a]!.step;
    offset += length * slices[a]!.start;
    length *= baseShape[a]!;
  }
  const permutation = shape.map((_, axis) => order.indexOf(axis));
  return { baseShape, slices, permutation, strides, offset, length };
}

/** Index into the base of every element of the view, in row-major order of the view. */
export function viewIndices(recipe: ViewRecipe): Int32Array {
  const { shape } = recipe;
  const { strides, offset } = viewLayout(recipe);
  const count = shape.reduce((a, n) => a * n, 1);
  return Int32Array.from({ length: count }, (_, flat) => {
    let rest = flat;
    let at = offset;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += (rest % shape[axis]!) * strides[axis]!;
      rest = Math.floor(rest / shape[axis]!);
    }
    return at;
  });
}

/** A base that holds `data`, row-major in the recipe's shape, and `fill` (NaN) wherever the view does not reach. */
export function embedInView(recipe: ViewRecipe, data: ArrayLike<number>, fill: number = NaN): Float64Array {
  const indices = viewIndices(recipe);
  requireLength("embedInView", "data", data, indices.length);
  const base = new Float64Array(viewLayout(recipe).length).fill(fill);
  indices.forEach((at, i) => {
    base[at] = data[i]!;
  });
  return base;
}

/** The elements of the view, row-major, read from a base. */
export function readView(recipe: ViewRecipe, base: ArrayLike<number>): Float64Array {
  requireLength("readView", "base", base, viewLayout(recipe).length);
  return Float64Array.from(viewIndices(recipe), (at) => base[at]!);
}

/** Views of a shape: transposed, sliced with steps, padded. Shrinks to the contiguous tensor. */
export function viewRecipe(shape: readonly number[]): Arbitrary<ViewRecipe> {
  const n = shape.length;
  const margins = fc.tuple(...shape.map(() => fc.nat({ max: 2 })));
  return fc
    .record({
      // A Lehmer code: the next axis is the drawn one among those left. All zeros is the identity.
      code: fc.tuple(...shape.map((_, i) => fc.nat({ max: n - 1 - i }))),
      before: margins,
      after: margins,
      step: fc.tuple(...shape.map(() => fc.integer({ min: 1, max: 2 }))),
    })
    .map(({ code, ...rest }) => {
      const left = shape.map((_, axis) => axis);
      return { shape, order: code.map((pick) => left.splice(pick, 1)[0]!), ...rest };
    });
}
