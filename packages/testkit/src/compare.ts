/**
 * Comparison of two arrays of numbers. Lengths first, then where NaN stands, then where infinities stand; only if
 * all three agree do the finite differences mean anything.
 */
import { TestkitError, requireArgument } from "./errors.ts";

/** A difference that no tolerance forgives, at the first index where it shows. */
export interface StructuralMismatch {
  readonly kind: "length" | "nan" | "infinity";
  /** First offending index; for "length", the shorter length. */
  readonly index: number;
  /** How many elements offend; for "length", the difference of the lengths. */
  readonly count: number;
  readonly actual: number;
  readonly expected: number;
}

/** What {@link compare} found. */
export interface Comparison {
  /** Present if lengths, NaNs or infinities disagree; the fields below then cover the other elements. */
  readonly mismatch?: StructuralMismatch;
  /** Index of the largest difference of finite elements; -1 if there is none to compare. */
  readonly worstIndex: number;
  /** Elements at worstIndex; NaN if there is none. */
  readonly actual: number;
  readonly expected: number;
  /** Largest |actual - expected| over finite elements. */
  readonly maxAbs: number;
  /** Largest finite |expected|. */
  readonly magnitude: number;
  /** maxAbs / magnitude; 0 if both are 0, Infinity if only the magnitude is. */
  readonly relative: number;
}

type Judge = (actual: number, expected: number) => boolean;

const nanDiffers: Judge = (a, e) => Number.isNaN(a) !== Number.isNaN(e);
const isInfinite = (x: number): boolean => Math.abs(x) === Infinity;
const infinityDiffers: Judge = (a, e) => (isInfinite(a) || isInfinite(e)) && a !== e;

function firstMismatch(
  kind: "nan" | "infinity",
  differs: Judge,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): StructuralMismatch | undefined {
  let index = -1;
  let count = 0;
  for (let i = 0; i < Math.min(actual.length, expected.length); i++) {
    if (!differs(actual[i]!, expected[i]!)) continue;
    if (index < 0) index = i;
    count++;
  }
  return count === 0 ? undefined : { kind, index, count, actual: actual[index]!, expected: expected[index]! };
}

function structuralMismatch(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): StructuralMismatch | undefined {
  if (actual.length !== expected.length) {
    return {
      kind: "length",
      index: Math.min(actual.length, expected.length),
      count: Math.abs(actual.length - expected.length),
      actual: actual.length,
      expected: expected.length,
    };
  }
  return (
    firstMismatch("nan", nanDiffers, actual, expected) ??
    firstMismatch("infinity", infinityDiffers, actual, expected)
  );
}

/** Compares element by element. Never throws; equal NaNs and equal infinities agree. */
export function compare(actual: ArrayLike<number>, expected: ArrayLike<number>): Comparison {
  const mismatch = structuralMismatch(actual, expected);
  let worstIndex = -1;
  let maxAbs = 0;
  let magnitude = 0;
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i]!;
    if (!Number.isFinite(e)) continue;
    magnitude = Math.max(magnitude, Math.abs(e));
    if (i >= actual.length || !Number.isFinite(actual[i]!)) continue;
    const difference = Math.abs(actual[i]! - e);
    if (worstIndex >= 0 && difference <= maxAbs) continue;
    worstIndex = i;
    maxAbs = difference;
  }
  return {
    ...(mismatch && { mismatch }),
    worstIndex,
    actual: worstIndex < 0 ? NaN : actual[worstIndex]!,
    expected: worstIndex < 0 ? NaN : expected[worstIndex]!,
    maxAbs,
    magnitude,
    relative: maxAbs === 0 ? 0 : maxAbs / magnitude,
  };
}

/** How closely {@link assertClose} wants two arrays to agree, and how it names them. */
export interface CloseOptions {
  /** Allowed difference as a share of the largest |expected|. Default 0. */
  readonly rel?: number | undefined;
  /** Allowed difference besides. Default 0. */
  readonly abs?: number | undefined;
  /** Name in the message. Default "values". */
  readonly name?: string | undefined;
  /** Shape, so that the message can give an index per axis. */
  readonly shape?: readonly number[] | undefined;
}

/** The index per axis of a flat row-major index, as text; the flat index itself without a shape. */
export function formatIndex(index: number, shape?: readonly number[]): string {
  if (!shape || shape.length === 0) return `[${index}]`;
  const axes: number[] = [];
  let rest = index;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    axes.unshift(rest % shape[axis]!);
    rest = Math.floor(rest / shape[axis]!);
  }
  return `[${axes.join(", ")}]`;
}

function describeMismatch(found: StructuralMismatch, shape: readonly number[] | undefined): string {
  if (found.kind === "length") return `got ${found.actual} elements, expected ${found.expected}`;
  const what = found.kind === "nan" ? "NaNs" : "infinities";
  const where = formatIndex(found.index, shape);
  return `${what} disagree at ${where}: got ${found.actual}, expected ${found.expected} (${found.count} elements)`;
}

/**
 * Throws a TestkitError with code "mismatch" unless lengths, NaNs and infinities agree and no finite difference
 * exceeds rel * (largest |expected|) + abs. The message names the worst index and both values. Returns the
 * comparison.
 */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  options: CloseOptions = {},
): Comparison {
  const { rel = 0, abs = 0, name = "values", shape } = options;
  requireArgument(rel >= 0 && abs >= 0, `[assertClose] tolerances must be >= 0; got rel ${rel}, abs ${abs}`, {
    rel,
    abs,
  });
  const found = compare(actual, expected);
  if (found.mismatch)
    throw new TestkitError("mismatch", `${name}: ${describeMismatch(found.mismatch, shape)}`, { ...found });
  const allowed = rel * found.magnitude + abs;
  if (found.maxAbs <= allowed) return found;
  const where = formatIndex(found.worstIndex, shape);
  throw new TestkitError(
    "mismatch",
    `${name}: worst at ${where}: got ${found.actual}, expected ${found.expected}; ` +
      `difference ${found.maxAbs.toExponential(3)} (${found.relative.toExponential(3)} of the largest value) ` +
      `exceeds ${allowed.toExponential(3)}`,
    { ...found, allowed },
  );
}
