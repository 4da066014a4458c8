/** Checks of what layers are given beside x; each names the layer, `what`, and the option. */
import {
  ArgumentError,
  type BlockTableReader,
  DTypeError,
  hostIntegers,
  recheck,
  type Shape,
  ShapeError,
  show,
  type Tensor,
} from "@heed/tensor";
import type { PastKeysValues } from "./gqa-past.ts";
import type { Positions } from "./rope.ts";

/** Throws ShapeError, DisposedError. */
export function checkShape(what: string, name: string, t: Tensor, shape: Shape, letters: string): void {
  t.check();
  if (t.shape.join() === shape.join()) return;
  throw new ShapeError(`[${what}] ${name} must be ${letters} = [${shape.join(", ")}]; got ${show(t)}`, {
    [name]: t.shape,
    shape,
  });
}
/** Throws DTypeError unless int32, and as {@link checkShape}. */
export function checkInts(what: string, name: string, t: Tensor, shape: Shape, letters: string): void {
  if (t.dtype !== "int32")
    throw new DTypeError(`[${what}] ${name} must be int32; got ${show(t)}`, { dtype: t.dtype });
  checkShape(what, name, t, shape, letters);
}
/** Lengths [B] from 0 to `max`; values are read on the host alone. Throws ArgumentError, and as {@link checkInts}. */
export function checkLengths(what: string, name: string, t: Tensor<"int32">, B: number, max: number): void {
  checkInts(what, name, t, [B], "[B]");
  if (t.engine.device !== "cpu") return;
  const check = (given: Tensor): void => {
    Array.from(hostIntegers(given) as ArrayLike<number>).forEach((n, b) => {
      if (n >= 0 && n <= max) return;
      throw new ArgumentError(`[${what}] ${name}[${b}] must be from 0 to ${max}; got ${n}`, {
        [name]: n,
        sequence: b,
      });
    });
  };
  check(t);
  recheck([t], ([given]) => check(given!));
}
/** A past of x's dtype and so many heads. Throws ShapeError, DTypeError, ArgumentError, DisposedError. */
export function checkPast(
  what: string,
  x: Tensor,
  past: PastKeysValues,
  { numKvHeads, headDim }: { readonly numKvHeads: number; readonly headDim: number },
): void {
  const B = x.shape[0]!;
  const P = past.k.shape[1] ?? 0;
  for (const [name, t] of [
    ["past.k", past.k],
    ["past.v", past.v],
  ] as const) {
    checkShape(what, name, t, [B, P, numKvHeads, headDim], "[B, P, Hkv, D]");
    if (t.dtype !== x.dtype) {
      throw new DTypeError(`[${what}] ${name} must have x's dtype; got ${show(t)} for x ${show(x)}`, {
        dtypes: [t.dtype, x.dtype],
      });
    }
  }
  if (past.lengths !== undefined) checkLengths(what, "past.lengths", past.lengths, B, P);
  if (past.documents !== undefined) checkInts(what, "past.documents", past.documents, [B, P], "[B, P]");
}
/**
 * Where the tokens of a cache's step stand, for heads [T, H, D]: int32 [T], or [3, 1, T]. Throws ShapeError,
 * ArgumentError, DisposedError; a rotation checks dtype and values.
 */
export function stepPositions(
  what: string,
  cache: BlockTableReader,
  given: Positions | undefined,
): Tensor<"int32"> {
  if (given === undefined) return cache.positions;
  if (typeof given === "number")
    throw new ArgumentError(`[${what}] positions beside a cache must be a tensor; got ${given}`, {
      positions: given,
    });
  const T = cache.positions.size;
  const { rank, size } = given;
  if ((rank === 1 || rank === 2) && size === T) return given.contiguous().reshape([T]);
  if ((rank === 2 || rank === 3) && given.shape[0] === 3 && size === 3 * T)
    return given.contiguous().reshape([3, 1, T]);
  throw new ShapeError(
    `[${what}] positions beside a cache must be one for each of the step's ${T} tokens, [T] or [B, S], or three, [3, T] or [3, B, S]; got ${show(given)}`,
    { positions: given.shape, tokens: T },
  );
}
