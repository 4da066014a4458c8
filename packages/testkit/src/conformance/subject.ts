/** What the suites share: an engine under test, operands placed on it, and the judgement of two answers by the oracle. */
import { getEngine, scope, Tensor, tensor } from "@heed/tensor";
import type { DTypeArrays, Engine, FusedMode } from "@heed/tensor";
import { embedInView, viewLayout } from "../arbitraries/views.ts";
import type { ViewRecipe } from "../arbitraries/views.ts";
import { assertClose } from "../compare.ts";
import { encodeArray } from "../dtype.ts";
import type { FloatDType } from "../dtype.ts";
import { assertFusedBound, toleranceFor } from "../tolerance.ts";
import type { FusedBoundInput } from "../tolerance.ts";
import { toFloat64 } from "../vectors.ts";
import type { VectorTensor } from "../vectors.ts";

/** An engine, the dtype of the operands, and how the answer that is judged comes about. */
export interface Subject {
  readonly engine: Engine;
  readonly dtype: FloatDType;
  /** "require" judges the engine's kernel; "auto", the default, whatever the engine runs. */
  readonly fused?: FusedMode | undefined;
}

/**
 * The registered engine of a name, with every allocation filled with 0xff: NaN in the float types, -1 in the integers. An operation that
 * reads what nobody wrote, or leaves a part of its result unwritten, shows.
 */
export function poisonedEngine(name: string): Engine {
  const engine = getEngine(name);
  const alloc: Engine["alloc"] = (bytes) => {
    const memory = engine.alloc(bytes);
    if (memory.buffer !== undefined) new Uint8Array(memory.buffer).fill(0xff);
    return memory;
  };
  return Object.assign(Object.create(engine) as Engine, { alloc });
}

/** What `run` gives as the subject says, and in the composed form; once only where that is the same. */
export async function bothForms<R>(
  { fused = "auto" }: Subject,
  run: (mode: FusedMode) => Promise<R>,
): Promise<{ readonly fused: R; readonly composed: R }> {
  const composed = await run("off");
  return { composed, fused: fused === "off" ? composed : await run(fused) };
}

/** The accumulator's dtype: float64 for float64, otherwise float32. */
export function wideOf(dtype: FloatDType): "float64" | "float32" {
  return dtype === "float64" ? "float64" : "float32";
}

/** A contiguous tensor of numbers rounded to `dtype`. */
export function place(
  engine: Engine,
  dtype: FloatDType,
  data: ArrayLike<number>,
  shape: readonly number[],
): Tensor<FloatDType> {
  return tensor(encodeArray(dtype, data) as DTypeArrays[FloatDType], shape, { dtype, engine });
}

/** The same as a strided view into a larger tensor, which holds NaN wherever the view does not reach. */
export function placeView(
  engine: Engine,
  dtype: FloatDType,
  data: ArrayLike<number>,
  recipe: ViewRecipe,
): Tensor<FloatDType> {
  const { length, strides, offset } = viewLayout(recipe);
  using base = place(engine, dtype, embedInView(recipe, data), [length]);
  base.storage.retain();
  return new Tensor(engine, base.storage, dtype, recipe.shape, strides, offset);
}

/** An int32 tensor of rank 1, or of the given shape. */
export function placeInt32(
  engine: Engine,
  data: ArrayLike<number>,
  shape: readonly number[] = [data.length],
): Tensor<"int32"> {
  return tensor(Int32Array.from(data), shape, { dtype: "int32", engine });
}

/** The elements of a tensor, row-major, as float64. */
export async function elements(t: Tensor): Promise<Float64Array> {
  return toFloat64({ dtype: t.dtype, shape: t.shape, data: await t.read() } as VectorTensor);
}

/** The elements of tensors by name, which are then disposed. */
export async function readAll<const R extends Readonly<Record<string, Tensor>>>(
  tensors: R,
): Promise<{ readonly [K in keyof R]: DTypeArrays[R[K]["dtype"]] }> {
  const read: Record<string, unknown> = {};
  for (const [name, t] of Object.entries(tensors)) {
    read[name] = await t.read();
    t[Symbol.dispose]();
  }
  return read as { readonly [K in keyof R]: DTypeArrays[R[K]["dtype"]] };
}

/** Tensors by name; an absent one is not compared. */
export type Results = Readonly<Record<string, Tensor | undefined>>;

/** Computes results in a scope, reads them back and frees them. */
export async function results<R extends Results>(
  compute: () => R,
): Promise<{ readonly [K in keyof R]: Float64Array }> {
  const tensors = scope(compute);
  const read: Record<string, Float64Array> = {};
  for (const [name, t] of Object.entries(tensors)) {
    if (t === undefined) continue;
    read[name] = await elements(t);
    t[Symbol.dispose]();
  }
  return read as { readonly [K in keyof R]: Float64Array };
}

/**
 * Judges the composed form by the oracle, at most 64 roundings in accumulation away, and the fused form by both. Throws a
 * TestkitError with code "mismatch".
 */
export function assertMeaning(input: FusedBoundInput): void {
  const { composed, oracle, dtype, shape, name = "result", termScale = 0, conditioning = 1 } = input;
  const { storage, accumulation } = toleranceFor(dtype);
  const roundings = storage + 64 * accumulation * conditioning;
  assertClose(composed, oracle, {
    rel: roundings,
    abs: roundings * termScale,
    name: `${name} (composed)`,
    shape,
  });
  assertFusedBound(input);
}

/** The largest |x|, 0 if there is none, NaN and infinities left out. */
export function largest(x: ArrayLike<number>): number {
  let max = 0;
  for (let i = 0; i < x.length; i++) if (Number.isFinite(x[i]!)) max = Math.max(max, Math.abs(x[i]!));
  return max;
}
