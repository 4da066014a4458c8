import { accumulatorOf, type DType, type FloatDType } from "../../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../../core/errors.ts";
import { allocate, show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { cast } from "../../ops/cast.ts";
import { recheck } from "../../engine/recorder.ts";
import { floatOnly, hostIntegers, int32Only, oneEngine, sameDType } from "../../ops/check.ts";
import { fill } from "../../ops/create.ts";
import { type DropoutRule, resolveDropout } from "./dropout.ts";
import type { AttentionOptions, ScoreOptions, Window } from "./options.ts";

declare const checked: unique symbol;
/** Resolved {@link ScoreOptions}: defaults filled in, causality folded into the window. */
export interface ScoreRules {
  readonly scale: number;
  /** 0: none. */
  readonly softcap: number;
  /** Keys before the query's position; -1: all. */
  readonly windowLeft: number;
  /** Keys after it; -1: all, 0: causal. */
  readonly windowRight: number;
  /** Keys below this are not hidden by windowLeft; 0 where that is open. */
  readonly sinkTokens: number;
  readonly queryOffset: "end" | number | Tensor<"int32">;
  /** bool or float, [B, Hq, S, Sk] by zero strides. */
  readonly mask: Tensor | undefined;
  /** [Hq], in the accumulator dtype. */
  readonly alibiSlopes: Tensor | undefined;
  /** [Hq], in the accumulator dtype. */
  readonly sinks: Tensor | undefined;
  /** int32 [B]. */
  readonly kvLengths: Tensor<"int32"> | undefined;
  /** Absent: nothing is dropped. */
  readonly dropout?: DropoutRule | undefined;
}
/** Lengths of an attention problem. */
export interface AttentionDims {
  readonly B: number;
  readonly S: number;
  readonly Sk: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
}
/** A checked attention problem. Only {@link planAttention} makes one; nothing below it checks shapes again. */
export interface AttentionPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly dims: AttentionDims;
  readonly rules: ScoreRules;
  readonly q: Tensor<FloatDType>; // [B, S, Hq, D], any strides
  readonly k: Tensor<FloatDType>; // [B, Sk, Hkv, D]
  readonly v: Tensor<FloatDType>; // [B, Sk, Hkv, Dv]
  readonly out: Tensor<FloatDType>; // [B, S, Hq, Dv]
  readonly lse: Tensor | undefined; // [B, Hq, S], accumulator dtype
}
/** A checked backward problem; gradients are written with `=`. */
export interface AttentionBackwardPlan extends AttentionPlan {
  readonly lse: Tensor;
  readonly dOut: Tensor<FloatDType>; // as out
  readonly dq: Tensor<FloatDType>; // as q
  readonly dk: Tensor<FloatDType>; // as k
  readonly dv: Tensor<FloatDType>; // as v
  /** Accumulator dtype, zeroed; strides of 0 where the mask was broadcast, so that writes there add up. */
  readonly dMask: Tensor | undefined;
  readonly dSinks: Tensor | undefined; // [Hq], accumulator dtype
}

function side(value: number | undefined, name: string, what: string): number {
  if (value === undefined || value === Infinity) return -1;
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new ArgumentError(
      `[${what}] window.${name} must be a whole number of at least 0, or absent for no bound; got ${value}`,
      {
        [name]: value,
      },
    );
  }
  return value;
}
/** The two-sided window with causality folded in; -1 is open. */
export function resolveWindow(
  isCausal: boolean | undefined,
  window: Window | undefined,
  what: string,
): [number, number] {
  const left = side(window?.left, "left", what);
  const right = side(window?.right, "right", what);
  return [left, isCausal === true ? 0 : right];
}
/** Keys that the left side does not hide: 0 where it hides none. */
function resolveSinkTokens(sinkTokens: number, windowLeft: number, what: string): number {
  if (Number.isSafeInteger(sinkTokens) && sinkTokens >= 0) return windowLeft < 0 ? 0 : sinkTokens;
  throw new ArgumentError(`[${what}] sinkTokens must be a whole number of at least 0; got ${sinkTokens}`, {
    sinkTokens,
  });
}
function perHead(
  what: string,
  name: string,
  t: Tensor | undefined,
  Hq: number,
  dtype: FloatDType,
): Tensor | undefined {
  if (t === undefined) return undefined;
  floatOnly(`${what}.${name}`, t);
  if (t.rank !== 1 || t.shape[0] !== Hq) {
    throw new ShapeError(`[${what}] ${name} must be [Hq] = [${Hq}]; got ${show(t)}`, { [name]: t.shape, Hq });
  }
  return cast(t, accumulatorOf(dtype));
}
/** The part of the rules that every kind of attention shares. */
export function resolveScores(
  what: string,
  o: ScoreOptions,
  D: number,
  Hq: number,
  dtype: FloatDType,
): Pick<
  ScoreRules,
  "scale" | "softcap" | "windowLeft" | "windowRight" | "sinkTokens" | "alibiSlopes" | "sinks"
> {
  const scale = o.scale ?? 1 / Math.sqrt(D);
  const softcap = o.softcap ?? 0;
  if (!Number.isFinite(scale))
    throw new ArgumentError(`[${what}] scale must be finite; got ${scale}`, { scale });
  if (!Number.isFinite(softcap) || softcap < 0) {
    throw new ArgumentError(`[${what}] softcap must be positive, or absent for none; got ${softcap}`, {
      softcap,
    });
  }
  const [windowLeft, windowRight] = resolveWindow(o.isCausal, o.window, what);
  const alibiSlopes = perHead(what, "alibiSlopes", o.alibiSlopes, Hq, dtype);
  return {
    scale,
    softcap,
    windowLeft,
    windowRight,
    sinkTokens: resolveSinkTokens(o.sinkTokens ?? 0, windowLeft, what),
    alibiSlopes,
    sinks: perHead(what, "sinks", o.sinks, Hq, dtype),
  };
}
function perSequence(name: string, t: Tensor, B: number, low: number, high: number): Tensor<"int32"> {
  int32Only("attention", name, t);
  if (t.rank !== 1 || t.shape[0] !== B) {
    throw new ShapeError(`[attention] ${name} must be int32[${B}], one per sequence; got ${show(t)}`, {
      [name]: t.shape,
      B,
    });
  }
  if (t.engine.device === "cpu") {
    checkRange(name, t, low, high);
    recheck([t], ([given]) => checkRange(name, given!, low, high));
  }
  return t as Tensor<"int32">;
}
function checkRange(name: string, t: Tensor, low: number, high: number): void {
  const data = hostIntegers(t);
  for (let b = 0; b < data.length; b++) {
    const n = data[b] as number;
    if (n < low || n > high) {
      throw new ArgumentError(`[attention] ${name}[${b}] must be from ${low} to ${high}; got ${n}`, {
        [name]: n,
        sequence: b,
      });
    }
  }
}
function resolveMask(mask: Tensor | undefined, d: AttentionDims): Tensor | undefined {
  if (mask === undefined) return undefined;
  if (mask.dtype !== "bool") {
    if (mask.dtype === "int32" || mask.dtype === "int64" || mask.dtype === "uint8") {
      throw new DTypeError(
        `[attention] attnMask must be bool (true may attend) or float (added); got ${show(mask)}`,
        { dtype: mask.dtype },
      );
    }
  }
  const full = [d.B, d.Hq, d.S, d.Sk];
  const lead = 4 - mask.rank;
  if (lead < 0 || mask.shape.some((n, i) => n !== 1 && n !== full[lead + i])) {
    throw new ShapeError(
      `[attention] attnMask must broadcast to [B, Hq, S, Sk] = [${full.join(", ")}]; got ${show(mask)}`,
      {
        attnMask: mask.shape,
        full,
      },
    );
  }
  return mask.broadcastTo(full);
}
/** [B, S, H, D] views of q, k and v and their lengths. */
function resolveOperands(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  layout: AttentionOptions["layout"],
): { views: Tensor[]; dims: AttentionDims } {
  const fail = (why: string): never => {
    throw new ShapeError(`[attention] ${why}; got q ${show(q)}, k ${show(k)}, v ${show(v)}`, {
      q: q.shape,
      k: k.shape,
      v: v.shape,
      layout,
    });
  };
  if (layout !== undefined && layout !== "bshd" && layout !== "bhsd") {
    throw new ArgumentError(`[attention] layout must be "bshd" or "bhsd"; got ${String(layout)}`, { layout });
  }
  for (const t of [q, k, v])
    if (t.rank !== 4)
      fail(`q, k and v must have rank 4 (${layout === "bhsd" ? "B, H, S, D" : "B, S, H, D"})`);
  const views = [q, k, v].map((t) => (layout === "bhsd" ? t.transpose(1, 2) : t));
  const [[B, S, Hq, D], [Bk, Sk, Hkv, Dk], [Bv, Sv, Hv, Dv]] = views.map((t) => t.shape) as [
    number[],
    number[],
    number[],
  ] as [[number, number, number, number], [number, number, number, number], [number, number, number, number]];
  if (Bk !== B || Bv !== B) fail("batch sizes must match");
  if (Dk !== D) fail("q and k must have one head size");
  if (D === 0 || Dv === 0) fail("the head sizes must be at least 1");
  if (Hv !== Hkv || Sv !== Sk) fail("k and v must have the same heads and length");
  if (Hkv === 0 ? Hq !== 0 : Hq % Hkv !== 0) fail("query heads must be a multiple of key heads");
  return { views, dims: { B, S, Sk, Hq, Hkv, D, Dv } };
}
/**
 * Checks an attention problem and allocates its results. The only place where shapes and dtypes are checked. Views and temporaries
 * belong to the caller's scope. Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError, OutOfMemoryError.
 */
export function planAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  o: AttentionOptions,
  wantLse: boolean,
  given?: { readonly out: Tensor; readonly lse: Tensor },
): AttentionPlan & { readonly result: Tensor } {
  const engine = oneEngine(
    "attention",
    q,
    k,
    v,
    o.attnMask,
    o.alibiSlopes,
    o.sinks,
    o.kvLengths,
    given?.out,
    given?.lse,
  );
  floatOnly("attention", q);
  sameDType("attention", q, k, v);
  const dtype = q.dtype as FloatDType;
  const { views, dims } = resolveOperands(q, k, v, o.layout);
  const { B, S, Sk, Hq, D, Dv } = dims;
  const offset = o.queryOffset ?? "end";
  if (
    typeof offset === "number"
      ? !Number.isSafeInteger(offset)
      : typeof offset === "string" && offset !== "end"
  ) {
    throw new ArgumentError(
      `[attention] queryOffset must be a whole number, "end" or int32[B]; got ${offset}`,
      {
        queryOffset: offset,
      },
    );
  }
  const rules: ScoreRules = {
    ...resolveScores("attention", o, D, Hq, dtype),
    mask: resolveMask(o.attnMask, dims),
    kvLengths: o.kvLengths && perSequence("kvLengths", o.kvLengths, B, 0, Sk),
    queryOffset:
      typeof offset === "object" ? perSequence("queryOffset", offset, B, -(2 ** 31), 2 ** 31 - 1) : offset,
    dropout: resolveDropout(o.dropout),
  };
  const shape = o.layout === "bhsd" ? [B, Hq, S, Dv] : [B, S, Hq, Dv];
  const result = given?.out ?? allocate(engine, dtype, shape);
  const lse = given?.lse ?? (wantLse ? allocate(engine, accumulatorOf(dtype), [B, Hq, S]) : undefined);
  const [qv, kv, vv] = views as [Tensor<FloatDType>, Tensor<FloatDType>, Tensor<FloatDType>];
  const out = (o.layout === "bhsd" ? result.transpose(1, 2) : result) as Tensor<FloatDType>;
  return { engine, dims, rules, q: qv, k: kv, v: vv, out, lse, result } as AttentionPlan & {
    readonly result: Tensor;
  };
}
/** Gradients in the operands' own shapes and layout. */
export interface AttentionGradients {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  /** In the mask's own shape; sums over axes along which it was broadcast. Present when asked for. */
  readonly attnMask?: Tensor;
  /** [Hq]; present when the forward pass had sinks. */
  readonly sinks?: Tensor;
}
/** Checks dOut against the forward plan and allocates gradients. Throws ShapeError, DTypeError, DeviceError, DisposedError. */
export function planAttentionBackward(
  forward: AttentionPlan,
  dOut: Tensor,
  o: AttentionOptions,
  attnMaskGradient: boolean,
): { readonly plan: AttentionBackwardPlan; readonly gradients: AttentionGradients } {
  const { engine, q, k, v, out, rules } = forward;
  oneEngine("attention backward", q, dOut);
  sameDType("attention backward", out, dOut);
  const flip = <T extends Tensor>(t: T): T => (o.layout === "bhsd" ? (t.transpose(1, 2) as T) : t);
  const upstream = flip(dOut as Tensor<FloatDType>);
  if (upstream.shape.join() !== out.shape.join()) {
    throw new ShapeError(
      `[attention backward] the gradient must have the output's shape; got ${show(dOut)} for ${show(flip(out))}`,
      {
        dOut: dOut.shape,
      },
    );
  }
  const acc = accumulatorOf(out.dtype);
  const like = (t: Tensor): Tensor => allocate(engine, t.dtype as DType, flip(t).shape);
  const gq = like(q);
  const gk = like(k);
  const gv = like(v);
  let gMask: Tensor | undefined;
  if (attnMaskGradient) {
    if (o.attnMask === undefined || o.attnMask.dtype === "bool") {
      throw new ArgumentError("[attention backward] attnMaskGradient needs a float attnMask", {
        attnMask: o.attnMask && show(o.attnMask),
      });
    }
    gMask = allocate(engine, acc, o.attnMask.shape);
    fill(gMask, 0);
  }
  const gSinks = rules.sinks && allocate(engine, acc, rules.sinks.shape);
  const plan = {
    ...forward,
    lse: forward.lse!,
    dOut: upstream,
    dq: flip(gq),
    dk: flip(gk),
    dv: flip(gv),
    dMask: gMask?.broadcastTo(rules.mask!.shape),
    dSinks: gSinks,
  } as AttentionBackwardPlan;
  const gradients = {
    q: gq,
    k: gk,
    v: gv,
    ...(gMask && { attnMask: gMask }),
    ...(gSinks && { sinks: gSinks }),
  };
  return { plan, gradients };
}
