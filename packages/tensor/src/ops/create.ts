import { DTYPES, type DType, type DTypeArrays, toBFloat16 } from "../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../core/errors.ts";
import { checkShape, MAX_RANK, type Shape, sizeOf } from "../core/shape.ts";
import { checkHostBytes } from "../core/storage.ts";
import { allocate, checkDType, computed, show, type Tensor } from "../core/tensor.ts";
import type { Engine } from "../engine/engine.ts";
import { getEngine } from "../engine/registry.ts";

/** Numbers nested to any depth, all rows of one length. */
export type Nested = number | readonly Nested[];
/** Options of the functions that create tensors. */
export interface CreateOptions<D extends DType = DType> {
  /** Default float32, or the dtype of a given typed array. */
  readonly dtype?: D;
  /** An engine or the name of a registered one; default the default engine. */
  readonly engine?: Engine | string;
}
function engineOf(options: CreateOptions): Engine {
  return typeof options.engine === "object" ? options.engine : getEngine(options.engine);
}
/** The dtype that a typed array is taken for; Uint16Array has none, since bfloat16 must be said. */
function dtypeOfArray(a: ArrayBufferView): DType | undefined {
  if (a instanceof Float32Array) return "float32";
  if (a instanceof Float64Array) return "float64";
  if (a instanceof Float16Array) return "float16";
  if (a instanceof Int32Array) return "int32";
  if (a instanceof BigInt64Array) return "int64";
  if (a instanceof Uint8Array) return "uint8";
  return undefined;
}
function shapeOfNested(values: Nested): number[] {
  const shape: number[] = [];
  for (let v = values; typeof v !== "number"; v = v[0] ?? 0) {
    if (!Array.isArray(v)) {
      throw new ArgumentError(
        `[tensor] takes numbers, nested lists of numbers or a typed array; got ${typeof v}`,
        {
          type: typeof v,
        },
      );
    }
    shape.push(v.length);
    if (v.length === 0) break;
    // A list that contains itself has no end.
    if (shape.length > MAX_RANK) {
      throw new ShapeError(`[tensor] rank must be at most ${MAX_RANK}; the lists are nested deeper`, {
        shape,
      });
    }
  }
  return shape;
}
function flatten(values: Nested, shape: Shape, axis: number, into: number[]): void {
  if (typeof values === "number") {
    if (axis !== shape.length)
      throw new ShapeError("[tensor] nested rows must all have one depth", { shape });
    into.push(values);
    return;
  }
  if (!Array.isArray(values)) {
    throw new ArgumentError(`[tensor] takes nested lists of numbers; one element is ${typeof values}`, {
      type: typeof values,
    });
  }
  if (values.length !== shape[axis]) {
    throw new ShapeError(
      `[tensor] nested rows must have one length: axis ${axis} has ${shape[axis]} and ${values.length}`,
      { shape },
    );
  }
  for (const v of values) flatten(v, shape, axis + 1, into);
}
const INTEGER_RANGE = { int32: [-(2 ** 31), 2 ** 31 - 1], uint8: [0, 255] } as const;
/** Toward zero, saturating, NaN as 0: as {@link cast} converts. */
function toInteger(x: number, low: number, high: number): number {
  return Math.trunc(Math.min(Math.max(x, low), high)) || 0;
}
function toInt64(x: number): bigint {
  return x >= 2 ** 63 ? 2n ** 63n - 1n : BigInt(toInteger(x, -(2 ** 63), 2 ** 63));
}
/** Numbers converted to the typed array of a dtype, each with one rounding, as {@link cast} would. */
function encode<D extends DType>(values: ArrayLike<number>, dtype: D): DTypeArrays[D] {
  const out = new DTYPES[dtype].array(values.length) as DTypeArrays[DType];
  if (out instanceof BigInt64Array) for (let i = 0; i < out.length; i++) out[i] = toInt64(values[i]!);
  else if (dtype === "int32" || dtype === "uint8") {
    const [low, high] = INTEGER_RANGE[dtype as "int32" | "uint8"];
    for (let i = 0; i < out.length; i++) out[i] = toInteger(values[i]!, low, high);
  } else if (dtype === "bfloat16") for (let i = 0; i < out.length; i++) out[i] = toBFloat16(values[i]!);
  else if (dtype === "bool") for (let i = 0; i < out.length; i++) out[i] = values[i] === 0 ? 0 : 1;
  else for (let i = 0; i < out.length; i++) out[i] = values[i]!;
  return out as DTypeArrays[D];
}
/**
 * A tensor with a copy of the given elements: nested numbers, or a flat typed array or list with a shape (default: rank 1).
 * Typed arrays must be of the dtype's own type (Uint16Array for bfloat16, Uint8Array for bool).
 * Throws ShapeError, DTypeError, ArgumentError (neither numbers nor lists), OutOfMemoryError.
 */
export function tensor<D extends DType = "float32">(
  values: Nested | DTypeArrays[D] | Float32Array | Float64Array,
  shape?: Shape,
  options: CreateOptions<D> = {},
): Tensor<D> {
  const engine = engineOf(options);
  let host: DTypeArrays[DType];
  let own: number[];
  let dtype: DType;
  if (options.dtype !== undefined) checkDType(options.dtype);
  if (ArrayBuffer.isView(values)) {
    dtype = options.dtype ?? dtypeOfArray(values) ?? "bfloat16";
    if (!(values instanceof DTYPES[dtype].array)) {
      throw new DTypeError(
        `[tensor] a ${values.constructor.name} cannot be taken as ${dtype}; convert it, or pass its own dtype`,
        {
          dtype,
          array: values.constructor.name,
        },
      );
    }
    if (values instanceof Uint16Array && options.dtype === undefined) {
      throw new DTypeError('[tensor] say dtype: "bfloat16" for a Uint16Array', { array: "Uint16Array" });
    }
    host = values as DTypeArrays[DType];
    own = [host.length];
  } else {
    dtype = options.dtype ?? "float32";
    own = shapeOfNested(values as Nested);
    const flat: number[] = [];
    flatten(values as Nested, own, 0, flat);
    host = encode(flat, dtype);
  }
  const target = shape ?? own;
  checkShape(target, "tensor");
  if (sizeOf(target) !== host.length) {
    throw new ShapeError(`[tensor] ${host.length} values do not fill shape [${target.join(", ")}]`, {
      values: host.length,
      shape: target,
    });
  }
  return computed(allocate(engine, dtype as D, target.slice()) as Tensor<D>, (out) => {
    if (out.size > 0) engine.upload(host, out);
  });
}
/** A tensor without initial values. */
export function empty<D extends DType = "float32">(
  shape: Shape,
  options: CreateOptions<D> = {},
): Tensor<NoInfer<D>> {
  return allocate(engineOf(options), (options.dtype ?? "float32") as D, shape.slice());
}
/** A tensor with one value throughout. */
export function full<D extends DType = "float32">(
  shape: Shape,
  value: number,
  options: CreateOptions<D> = {},
): Tensor<NoInfer<D>> {
  return computed(empty(shape, options), (out) => fill(out, value));
}
/** A tensor of zeros. */
export function zeros<D extends DType = "float32">(
  shape: Shape,
  options: CreateOptions<D> = {},
): Tensor<NoInfer<D>> {
  return full(shape, 0, options);
}
/** A tensor of ones. */
export function ones<D extends DType = "float32">(
  shape: Shape,
  options: CreateOptions<D> = {},
): Tensor<NoInfer<D>> {
  return full(shape, 1, options);
}
/** Sets every element of `out` to `value`. */
export function fill(out: Tensor, value: number): void {
  out.check();
  if (out.size === 0) return;
  using one = allocate(out.engine, out.dtype, []);
  out.engine.upload(encode([value], out.dtype), one);
  using wide = one.broadcastTo(out.shape);
  out.engine.copy(wide, out);
}
/** start, start + step, ... below `end`, of dtype int32 by default. Throws ArgumentError when step is 0. */
export function arange<D extends DType = "int32">(
  start: number,
  end: number,
  step = 1,
  options: CreateOptions<D> = {},
): Tensor<NoInfer<D>> {
  if (!Number.isFinite(start) || !Number.isFinite(end) || !Number.isFinite(step) || step === 0) {
    throw new ArgumentError(
      `[arange] needs finite bounds and a step other than 0; got ${start}, ${end}, ${step}`,
      { start, end, step },
    );
  }
  const n = Math.max(0, Math.ceil((end - start) / step));
  const dtype = (options.dtype ?? "int32") as D;
  const values = Float64Array.from({ length: n }, (_, i) => start + i * step);
  return tensor(encode(values, dtype) as DTypeArrays[D], [n], { ...options, dtype });
}
/** The same elements on another engine; a second handle when it is already there. Waits for the engine it comes from. */
export async function toEngine<D extends DType>(x: Tensor<D>, engine: Engine | string): Promise<Tensor<D>> {
  const target = typeof engine === "string" ? getEngine(engine) : engine;
  if (x.engine === target) return x.alias() as Tensor<D>;
  return tensor(await x.read(), x.shape, { dtype: x.dtype, engine: target });
}
/** The elements as float64, row-major, whatever the dtype and strides. Host engines only. Throws DeviceError, DisposedError, ShapeError past 2^29 elements. */
export function toFloat64(x: Tensor): Float64Array {
  checkHostBytes(x.size * DTYPES.float64.bytes);
  const out = new Float64Array(x.size);
  if (x.size === 0) return out;
  using wide = allocate(x.engine, "float64", x.shape);
  x.check();
  x.engine.copy(x, wide);
  out.set(wide.data);
  return out;
}
/** `float32[2, 3]` of a tensor and, for small ones on the host, its elements: what a debugger wants to see. */
export function inspect(x: Tensor): string {
  return x.size <= 64 && x.engine.device === "cpu"
    ? `${show(x)} ${Array.from(toFloat64(x)).join(" ")}`
    : show(x);
}
