import { cpu, measurePeak, setThreads } from "@heed/engine-cpu";
import { tensor } from "@heed/tensor";
import type { DTypeArrays, Engine, Tensor } from "@heed/tensor";
import type { MeasurePeak } from "./harness.ts";
import type { BenchDType } from "./shapes.ts";

/** What benches need of an engine: its name, a way in for data, its threads, and the limits of its machine. */
export interface BenchEngine {
  readonly name: string;
  /** The engine itself, for what is built on it. */
  readonly engine: Engine;
  readonly measurePeak: MeasurePeak;
  /** Copies float32 values into a new tensor, rounded to `dtype`. */
  upload<D extends BenchDType>(
    values: Float32Array<ArrayBuffer>,
    shape: readonly number[],
    dtype: D,
  ): Tensor<D>;
  /** Copies int32 values into a new tensor. */
  uploadInt32(values: Int32Array<ArrayBuffer>, shape: readonly number[]): Tensor<"int32">;
  /** Number of threads that work on one call, the caller included. */
  setThreads(threads: number): void;
}

/** The CPU engine as benches see it. */
export function cpuEngine(): BenchEngine {
  const engine = cpu();
  return {
    name: engine.name,
    engine,
    measurePeak,
    upload: (values, shape, dtype) => tensor(store(values, dtype), shape, { dtype, engine }),
    uploadInt32: (values, shape) => tensor(values, shape, { dtype: "int32", engine }),
    setThreads,
  };
}

/** Float32 values as `dtype` stores them, rounded to nearest, ties to even. */
export function store<D extends BenchDType>(values: Float32Array<ArrayBuffer>, dtype: D): DTypeArrays[D];
export function store(values: Float32Array<ArrayBuffer>, dtype: BenchDType): DTypeArrays[BenchDType] {
  if (dtype === "float32") return values;
  if (dtype === "float16") return new Float16Array(values);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16);
}

/** The stored elements of `dtype` as float32; exact. */
export function load<D extends BenchDType>(stored: DTypeArrays[D], dtype: D): Float32Array<ArrayBuffer> {
  if (dtype !== "bfloat16") return Float32Array.from(stored);
  return new Float32Array(Uint32Array.from(stored, (b) => b << 16).buffer);
}
