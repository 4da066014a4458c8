import {
  arange,
  ArgumentError,
  binary,
  cast,
  concat,
  empty,
  type Engine,
  isFloat,
  maskNegInf,
  max,
  mul,
  ones,
  scope,
  ShapeError,
  show,
  sub,
  sum,
  tensor,
  type Tensor,
  zeros,
} from "@heed/tensor";

type Ints = Tensor<"int32">;

/**
 * Documents of packed sequences, int32 [B, S], from cumulative lengths: row b of `boundaries` is 0 and the end of
 * each document in turn, as in "cu_seqlens". Tokens after the last end form a document of their own, for
 * padding. Throws ArgumentError when a row does not rise from 0 to at most S.
 */
export function documentIds(
  boundaries: readonly ArrayLike<number>[],
  S: number,
  options: { readonly engine?: Engine | string | undefined } = {},
): Ints {
  const ids = new Int32Array(boundaries.length * S);
  boundaries.forEach((ends, b) => {
    for (let i = 0; i < Math.max(ends.length, 1); i++) {
      const [from, to] = [ends[i - 1] ?? 0, ends[i]];
      const fits = i === 0 ? to === 0 : Number.isSafeInteger(to) && to! >= from && to! <= S;
      if (!fits) {
        throw new ArgumentError(
          `[documentIds] boundaries[${b}] must rise from 0 to at most ${S} in whole numbers; got ${String(to)} at ${i}`,
          { sequence: b, at: i, value: to, S },
        );
      }
      ids.fill(i, b * S + to!, (b + 1) * S);
    }
  });
  const { engine } = options;
  return tensor(ids, [boundaries.length, S], { dtype: "int32", ...(engine !== undefined && { engine }) });
}
/**
 * Positions that start again at 0 with every document: int32 [B, S] for documents [B, S] whose tokens are
 * neighbours. On a device it takes memory of B * S * S integers. Throws ShapeError, DisposedError.
 */
export function documentPositions(documents: Ints): Ints {
  if (documents.rank !== 2) {
    throw new ShapeError(`[documentPositions] documents must be int32[B, S]; got ${show(documents)}`, {
      documents: documents.shape,
    });
  }
  if (documents.engine.device !== "cpu") return positionsOnDevice(documents);
  using dense = documents.contiguous();
  const ids = dense.data;
  const S = documents.shape[1]!;
  const positions = new Int32Array(ids.length);
  for (let t = 0; t < ids.length; t++)
    if (t % S !== 0 && ids[t] === ids[t - 1]) positions[t] = positions[t - 1]! + 1;
  return tensor(positions, documents.shape, { dtype: "int32", engine: documents.engine });
}
/** {@link documentPositions} where the host does not see the documents: a token's place less that of the last beginning up to it. */
function positionsOnDevice(documents: Ints): Ints {
  return scope(() => {
    const { engine } = documents;
    const [B, S] = documents.shape as unknown as [number, number];
    if (documents.size === 0) return empty([B, S], { dtype: "int32", engine });
    const at = arange(0, S, 1, { engine });
    const same = binary("equal", documents.slice(1, 1), documents.slice(1, 0, S - 1)); // [B, S - 1]
    const begins = sub(ones([B, S - 1], { dtype: "int32", engine }), cast(same, "int32"));
    const beginnings = mul(concat([zeros([B, 1], { dtype: "int32", engine }), begins], 1), at); // 0 where there is none
    const upTo = cast(binary("lessEqual", at, at.unsqueeze(1)), "int32"); // [token, beginning]
    return sub(at, max(mul(beginnings.unsqueeze(1), upTo), { axes: [2] }));
  });
}
/**
 * The mask under which tokens see those of their own document alone, [B, 1, S, Sk], joined with a caller's
 * mask.
 */
export function documentMask(queries: Ints, keys: Ints, attnMask: Tensor | undefined): Tensor {
  const same = binary("equal", queries.unsqueeze(2), keys.unsqueeze(1)).unsqueeze(1) as Tensor<"bool">;
  if (attnMask === undefined) return same;
  if (attnMask.dtype === "bool") return binary("and", attnMask, same);
  // Other dtypes are attention's to refuse.
  return isFloat(attnMask.dtype) ? maskNegInf(attnMask as Tensor<"float32">, same) : attnMask;
}
/** A gradient of the joined mask as that of the caller's: summed over what it was broadcast along. */
export function maskGradient(d: Tensor, attnMask: Tensor): Tensor {
  const lead = d.rank - attnMask.rank;
  const axes = d.shape.map((_, i) => i).filter((i) => i < lead || attnMask.shape[i - lead] !== d.shape[i]);
  const total = axes.length === 0 ? d : sum(d, { axes, keepDims: true });
  return total.contiguous().reshape(attnMask.shape);
}
