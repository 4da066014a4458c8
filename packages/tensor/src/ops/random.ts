import { DTYPES, type DTypeArrays, type FloatDType, toBFloat16 } from "../core/dtype.ts";
import { sizeOf, type Shape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { type CreateOptions, tensor } from "./create.ts";

/** Options of {@link randn} and {@link uniform}. */
export interface RandomOptions<D extends FloatDType = FloatDType> extends CreateOptions<D> {
  /** The same seed gives the same numbers on every machine. Default 0. */
  readonly seed?: number;
}
/** The generator sfc32 (Doty-Humphrey, PractRand), seeded; returns 32 random bits a call. */
function sfc32(seed: number): () => number {
  let a = seed | 0;
  let b = Math.floor(seed / 2 ** 32) | 0;
  let c = 0x9e3779b9 | 0;
  let counter = 1;
  const next = (): number => {
    const t = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t;
    c |= 0;
    return t >>> 0;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}
function generate<D extends FloatDType>(
  shape: Shape,
  options: RandomOptions<D>,
  draw: (unit: () => number) => number,
): Tensor<D> {
  const dtype = (options.dtype ?? "float32") as D;
  const bits = sfc32(options.seed ?? 0);
  const unit = (): number => (bits() * 2 ** 21 + (bits() >>> 11)) * 2 ** -53;
  const host = new DTYPES[dtype].array(sizeOf(shape)) as Float32Array;
  for (let i = 0; i < host.length; i++) {
    const x = draw(unit);
    host[i] = dtype === "bfloat16" ? toBFloat16(x) : x;
  }
  return tensor(host as unknown as DTypeArrays[D], shape, { ...options, dtype });
}
/** Normally distributed numbers with the given mean (0) and standard deviation (1), by Box and Muller's transform. */
export function randn<D extends FloatDType = "float32">(
  shape: Shape,
  options: RandomOptions<D> & { readonly mean?: number; readonly std?: number } = {},
): Tensor<NoInfer<D>> {
  const { mean = 0, std = 1 } = options;
  return generate(
    shape,
    options,
    (unit) => mean + std * Math.sqrt(-2 * Math.log(1 - unit())) * Math.cos(2 * Math.PI * unit()),
  );
}
/** Uniformly distributed numbers in [low, high), by default [0, 1). */
export function uniform<D extends FloatDType = "float32">(
  shape: Shape,
  options: RandomOptions<D> & { readonly low?: number; readonly high?: number } = {},
): Tensor<NoInfer<D>> {
  const { low = 0, high = 1 } = options;
  return generate(shape, options, (unit) => low + (high - low) * unit());
}
