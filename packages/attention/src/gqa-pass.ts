import { add, type AttentionVjp, type FloatDType, ShapeError, show, type Tensor } from "@heed/tensor";
import type {
  GroupedQueryAttentionGradients,
  GroupedQueryAttentionVjpOptions,
  KeysValuesGradients,
} from "./gqa-call.ts";
import type { HeadsPass, Places } from "./gqa-heads.ts";
import type { JoinedKeysValues, PastKeysValues } from "./gqa-past.ts";
import type { LayerGradients } from "./layer.ts";
import type { Positions } from "./rope.ts";

/** What a forward pass of `GroupedQueryAttention` leaves for its backward pass. */
export interface Pass {
  readonly heads: HeadsPass;
  readonly keys: Pick<JoinedKeysValues, "rows" | "pastRows">;
  readonly inner: AttentionVjp;
  readonly attended: Tensor; // [B, S, Hq * D]
  readonly mask: Tensor | undefined; // where its gradient is asked for
  /** Whether the past gets gradients. */
  readonly full: boolean;
}
/**
 * A pass with handles that outlive its inputs' own, and a list of all that it keeps alive. Without a norm, q and
 * k before it are not read.
 */
export function keepPass(
  { heads, keys, inner, attended, mask }: Omit<Pass, "full">,
  hasNorm: boolean,
  options: GroupedQueryAttentionVjpOptions,
): { readonly pass: Pass; readonly saved: readonly Tensor[] } {
  const saved: Tensor[] = [attended, ...inner.saved];
  const keep = <T extends Tensor>(t: T): T => {
    const own = t.alias() as T;
    saved.push(own);
    return own;
  };
  const place = (at: Positions): Positions => (typeof at === "object" ? keep(at) : at);
  const at: Places = { x: place(heads.at.x), context: place(heads.at.context) };
  const own: HeadsPass = {
    x: keep(heads.x),
    context: heads.context && keep(heads.context),
    at,
    q: hasNorm ? keep(heads.q) : heads.q,
    k: hasNorm ? heads.k && keep(heads.k) : heads.k,
  };
  const pass: Pass = {
    heads: own,
    keys: { rows: keys.rows && keep(keys.rows), pastRows: keys.pastRows },
    inner,
    attended,
    mask: options.attnMaskGradient === true ? mask && keep(mask) : undefined,
    full: options.backpropagation !== "oneStep" && options.past !== undefined,
  };
  return { pass, saved };
}
/** The keys and values of a call under new handles, since what was given as past is the caller's. */
export function presentOf<D extends FloatDType>(keys: JoinedKeysValues): PastKeysValues<D> {
  const { k, v, lengths, documents } = keys;
  return {
    k: k.alias() as Tensor as Tensor<D>,
    v: v.alias() as Tensor as Tensor<D>,
    ...(lengths && { lengths: lengths.alias() as Tensor<"int32"> }),
    ...(documents && { documents: documents.alias() as Tensor<"int32"> }),
  };
}
/** A gradient of keys or values with that of the present, where there is one. Throws ShapeError. */
export function addPresent(
  what: string,
  d: Tensor,
  name: "k" | "v",
  dPresent: KeysValuesGradients | undefined,
): Tensor {
  const other = dPresent?.[name];
  if (other === undefined) return d;
  if (other.shape.join() === d.shape.join()) return add(d, other);
  throw new ShapeError(`[${what}] dPresent.${name} must be ${show(d)}, as present; got ${show(other)}`, {
    dPresent: other.shape,
    present: d.shape,
  });
}
/** Gradients of x and the parameters with those of what else a call was given. */
export function extendGradients(
  base: LayerGradients,
  others: Pick<GroupedQueryAttentionGradients, "context" | "past" | "attnMask">,
): GroupedQueryAttentionGradients {
  const { context, past, attnMask } = others;
  const dispose = (): void => {
    base[Symbol.dispose]();
    for (const t of [context, past?.k, past?.v, attnMask]) t?.[Symbol.dispose]();
  };
  return { ...base, ...others, [Symbol.dispose]: dispose };
}
