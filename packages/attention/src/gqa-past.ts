import {
  add,
  arange,
  binary,
  cast,
  concat,
  type FloatDType,
  gather,
  minimum,
  mul,
  neg,
  scatterAdd,
  type Tensor,
  zeros,
} from "@heed/tensor";

type Ints = Tensor<"int32">;

/** Keys and values of tokens before a call's own, normalised and rotated already. */
export interface PastKeysValues<D extends FloatDType = FloatDType> {
  /** [B, P, Hkv, D] */
  readonly k: Tensor<D>;
  /** [B, P, Hkv, D] */
  readonly v: Tensor<D>;
  /** int32 [B]: rows in use of each sequence, from the first on; later ones are not read. Default P. */
  readonly lengths?: Ints | undefined;
  /** int32 [B, P]: the document of each row, where the call has `documents`. */
  readonly documents?: Ints | undefined;
}
/** A call's own keys and values. */
export interface FreshKeysValues {
  readonly k: Tensor; // [B, n, Hkv, D]
  readonly v: Tensor;
  readonly lengths: Ints | undefined; // [B], rows in use; default n
  readonly documents: Ints | undefined; // [B, n]
}
/** All keys and values of a call: row j of a sequence is its token j. */
export interface JoinedKeysValues {
  readonly k: Tensor; // [B, P + n, Hkv, D]
  readonly v: Tensor;
  readonly lengths: Ints | undefined; // [B], rows in use; default all
  readonly documents: Ints | undefined; // [B, P + n]
  /** Which row of [past, fresh] each row is, counted over the batch [B * (P + n)]; undefined: as they come. */
  readonly rows: Ints | undefined;
  readonly pastRows: number; // P
}

/**
 * Rows of [past, fresh] so that a sequence's own tokens follow its past at once, whatever the lengths: row j is
 * past row j before `lengths`, then fresh row j - length. What lies beyond repeats the last fresh row.
 */
function rowsInOrder(lengths: Ints, P: number, n: number): Ints {
  const B = lengths.shape[0]!;
  const on = { dtype: "int32", engine: lengths.engine } as const;
  const j = arange(0, P + n, 1, on) as Tensor as Ints;
  const length = lengths.contiguous().reshape([B, 1]) as Ints;
  const isFresh = cast(binary("lessEqual", length, j), "int32") as Ints; // [B, P + n]
  const within = minimum(add(j, mul(isFresh, add(neg(length), P))), P + n - 1);
  const first = mul(arange(0, B, 1, on) as Tensor as Ints, P + n).reshape([B, 1]) as Ints;
  return add(within, first).reshape([B * (P + n)]) as Ints;
}
function join<T extends Tensor>(past: T, fresh: T, rows: Ints | undefined): T {
  const all = concat([past, fresh], 1);
  if (rows === undefined) return all as T;
  return gather(all.reshape([rows.size, ...all.shape.slice(2)]), rows).reshape(all.shape) as T;
}
/** The keys and values that a call attends over: the past's, then its own. Belong to the caller's scope. */
export function joinPast(
  past: PastKeysValues | undefined,
  fresh: FreshKeysValues | undefined,
): JoinedKeysValues {
  if (past === undefined) return { ...fresh!, rows: undefined, pastRows: 0 };
  const P = past.k.shape[1]!;
  if (fresh === undefined) {
    const { k, v, lengths, documents } = past;
    return { k, v, lengths, documents, rows: undefined, pastRows: P };
  }
  const n = fresh.k.shape[1]!;
  const rows = past.lengths && P + n > 0 ? rowsInOrder(past.lengths, P, n) : undefined;
  const { lengths } = fresh;
  return {
    k: join<Tensor>(past.k, fresh.k, rows),
    v: join<Tensor>(past.v, fresh.v, rows),
    lengths: past.lengths ? add(past.lengths, lengths ?? n) : lengths && add(lengths, P),
    documents: past.documents && fresh.documents && join(past.documents, fresh.documents, rows),
    rows,
    pastRows: P,
  };
}
/** Where S tokens stand that follow so many others: a number, or int32 [B] for one of each sequence, then [B, S]. */
export function positionsAfter(lengths: number | Ints, S: number): number | Ints {
  if (typeof lengths === "number") return lengths;
  const steps = arange(0, S, 1, { dtype: "int32", engine: lengths.engine });
  return add(lengths.contiguous().reshape([-1, 1]) as Ints, steps);
}
/** A gradient [B, P + n, Hkv, D] of joined rows as those of the past [B, P, ...] and the fresh [B, n, ...]. */
export function splitPast(
  d: Tensor,
  { rows, pastRows }: Pick<JoinedKeysValues, "rows" | "pastRows">,
): { readonly past: Tensor; readonly fresh: Tensor } {
  let all = d;
  if (rows !== undefined) {
    const flat = [rows.size, ...d.shape.slice(2)];
    const spread = zeros(flat, { dtype: d.dtype, engine: d.engine });
    // Rows beyond a sequence's length were not seen: their gradient is 0, wherever it is added.
    scatterAdd(d.contiguous().reshape(flat), rows, spread);
    all = spread.reshape(d.shape);
  }
  return { past: all.slice(1, 0, pastRows), fresh: all.slice(1, pastRows) };
}
