import { add, type AttentionVjp, type FloatDType, ShapeError, show, type Tensor } from "@heed/tensor";
import { joinPast, type JoinedKeysValues, splitPast } from "./gqa-past.ts";
import type { LayerGradients, LayerVjp } from "./layer.ts";
import type { LatentRowsPass } from "./mla-heads.ts";
import type { MultiHeadLatentAttentionVjpOptions } from "./mla-call.ts";

type Ints = Tensor<"int32">;

/** Latent rows and rotary keys of tokens before a call's own: what a cache keeps of a token, R + Dr numbers. */
export interface PastLatentRows<D extends FloatDType = FloatDType> {
  /** [B, P, R], normalised. */
  readonly latent: Tensor<D>;
  /** [B, P, Dr], rotated. */
  readonly rotaryKey: Tensor<D>;
  /** int32 [B]: rows in use of each sequence, from the first on; later ones are not read. Default P. */
  readonly lengths?: Ints | undefined;
  /** int32 [B, P]: the document of each row, where the call has `documents`. */
  readonly documents?: Ints | undefined;
}
/** Gradients of latent rows [B, n, R] and rotary keys [B, n, Dr]. */
export interface LatentRowsGradients<D extends FloatDType = FloatDType> {
  readonly latent: Tensor<D>;
  readonly rotaryKey: Tensor<D>;
}
/** Gradients of `MultiHeadLatentAttention`: of x, the parameters, and what else the call was given. */
export interface MultiHeadLatentAttentionGradients<
  D extends FloatDType = FloatDType,
> extends LayerGradients<D> {
  /** Of the past's rows, under full backpropagation; 0 in rows that are not in use. */
  readonly past?: LatentRowsGradients<D>;
  /** Of the mask, in its shape and the accumulator's dtype; present when asked for. */
  readonly attnMask?: Tensor;
}
/** A forward pass of `MultiHeadLatentAttention` that can be differentiated. */
export interface MultiHeadLatentAttentionVjp<D extends FloatDType = FloatDType> extends LayerVjp<D> {
  /** All rows of the call, for the `past` of the next. They live until this is disposed; take an alias to keep them longer. */
  readonly present: PastLatentRows<D>;
  /**
   * Gradients of sum(dOutput * output), and of sum(dPresent * present) besides: the next call's gradients of its past. May be called
   * again. Throws ShapeError, DTypeError, DeviceError, DisposedError.
   */
  backward(
    dOutput: Tensor<NoInfer<D>>,
    dPresent?: LatentRowsGradients<NoInfer<D>>,
  ): MultiHeadLatentAttentionGradients<D>;
}
/** All rows of a call, in the order of each sequence. */
export interface JoinedLatentRows extends Pick<
  JoinedKeysValues,
  "lengths" | "documents" | "rows" | "pastRows"
> {
  readonly latent: Tensor; // [B, P + S, R]
  readonly rotaryKey: Tensor; // [B, P + S, Dr]
}
/** The rows that a call attends over: the past's, then its own. Belong to the caller's scope. */
export function joinLatentRows(
  past: PastLatentRows | undefined,
  fresh: PastLatentRows<FloatDType>,
): JoinedLatentRows {
  // How rows are put in order does not depend on what they hold.
  const { k, v, ...order } = joinPast(past && { ...past, k: past.latent, v: past.rotaryKey }, {
    k: fresh.latent,
    v: fresh.rotaryKey,
    lengths: fresh.lengths,
    documents: fresh.documents,
  });
  return { ...order, latent: k, rotaryKey: v };
}
/** What a forward pass of `MultiHeadLatentAttention` leaves for its backward pass. */
export interface LatentPass {
  readonly own: LatentRowsPass;
  readonly rows: Pick<JoinedLatentRows, "latent" | "rows" | "pastRows">;
  readonly inner: AttentionVjp;
  readonly attended: Tensor; // [B, S, H * Dv]
  readonly mask: Tensor | undefined; // for its shape, where its gradient is asked for
  /** Whether the past gets gradients. */
  readonly full: boolean;
}
/** A pass with handles that outlive its inputs' own, and a list of all that it keeps alive. */
export function keepLatentPass(
  { own, rows, inner, attended, mask }: Omit<LatentPass, "full">,
  options: MultiHeadLatentAttentionVjpOptions,
): { readonly pass: LatentPass; readonly saved: readonly Tensor[] } {
  const saved: Tensor[] = [attended, ...inner.saved];
  const keep = <T extends Tensor>(t: T): T => {
    const alias = t.alias() as T;
    saved.push(alias);
    return alias;
  };
  const { x, positions, compressed, query } = own;
  const pass: LatentPass = {
    own: {
      x: keep(x),
      positions: typeof positions === "object" ? keep(positions) : positions,
      compressed: keep(compressed),
      query: query && { before: keep(query.before), after: keep(query.after) },
    },
    rows: { latent: keep(rows.latent), rows: rows.rows && keep(rows.rows), pastRows: rows.pastRows },
    inner,
    attended,
    mask: options.attnMaskGradient === true ? mask : undefined,
    full: options.backpropagation !== "oneStep" && options.past !== undefined,
  };
  return { pass, saved };
}
/** The rows of a call under new handles, since what was given as past is the caller's. */
export function presentRows<D extends FloatDType>(rows: JoinedLatentRows): PastLatentRows<D> {
  const { latent, rotaryKey, lengths, documents } = rows;
  return {
    latent: latent.alias() as Tensor as Tensor<D>,
    rotaryKey: rotaryKey.alias() as Tensor as Tensor<D>,
    ...(lengths && { lengths: lengths.alias() as Ints }),
    ...(documents && { documents: documents.alias() as Ints }),
  };
}
/**
 * A gradient of all rows, with that of the present where there is one, as those of the past and of the call's own. Throws ShapeError.
 */
export function splitRows(
  d: Tensor,
  name: "latent" | "rotaryKey",
  dPresent: LatentRowsGradients | undefined,
  order: Pick<JoinedLatentRows, "rows" | "pastRows">,
): { readonly past: Tensor; readonly fresh: Tensor } {
  const other = dPresent?.[name];
  if (other !== undefined && other.shape.join() !== d.shape.join()) {
    throw new ShapeError(
      `[MultiHeadLatentAttention] dPresent.${name} must be ${show(d)}, as present; got ${show(other)}`,
      { dPresent: other.shape, present: d.shape },
    );
  }
  return splitPast(other === undefined ? d : add(d, other), order);
}
/** Gradients of x and the parameters with those of what else a call was given. */
export function extendLatentGradients(
  base: LayerGradients,
  others: Pick<MultiHeadLatentAttentionGradients, "past" | "attnMask">,
): MultiHeadLatentAttentionGradients {
  const { past, attnMask } = others;
  const dispose = (): void => {
    base[Symbol.dispose]();
    for (const t of [past?.latent, past?.rotaryKey, attnMask]) t?.[Symbol.dispose]();
  };
  return { ...base, ...others, [Symbol.dispose]: dispose };
}
