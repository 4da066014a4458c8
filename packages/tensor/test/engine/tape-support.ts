import {
  copyInto,
  type DType,
  type Engine,
  memoryUsage,
  type Recorded,
  recordTape,
  resetPeakMemory,
  scope,
  type Tensor,
  tensor,
} from "@heed/tensor";
import { createRng, encodeArray } from "@heed/testkit";
import { expect } from "bun:test";

/** The bytes of a contiguous tensor: equality of these is equality of bits, NaN and -0 included. */
export function bits(t: Tensor): Uint8Array {
  return scope(() => {
    const { data } = t.contiguous();
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  });
}
/** How often `fn` asks the engine for memory. */
export function allocations(engine: Engine, fn: () => void): number {
  const own = Object.hasOwn(engine, "alloc");
  const { alloc } = engine;
  let calls = 0;
  engine.alloc = (bytes) => {
    calls++;
    return alloc.call(engine, bytes);
  };
  try {
    fn();
  } finally {
    if (own) engine.alloc = alloc;
    else delete (engine as Partial<Engine>).alloc;
  }
  return calls;
}
/** Runs `fn` and expects that no tensor memory is allocated meanwhile. */
export function withoutAllocation(engine: Engine, fn: () => void): void {
  resetPeakMemory();
  const before = memoryUsage();
  expect(allocations(engine, fn)).toBe(0);
  expect(memoryUsage()).toEqual(before);
}
/** Normal numbers as a tensor. */
export function normal(engine: Engine, dtype: "float32" | "float64", shape: number[], seed: number): Tensor {
  const count = shape.reduce((n, x) => n * x, 1);
  const values = encodeArray(dtype, createRng(seed).normalArray(count));
  return tensor(values as Float32Array, shape, { engine, dtype });
}
/** A call and two sets of inputs for it. */
export interface Case {
  readonly make: (engine: Engine, variant: 0 | 1) => Tensor[];
  readonly run: (inputs: readonly Tensor[]) => Tensor | readonly Tensor[];
}
/**
 * Records a case with its first inputs, replays it with the second and then again with the first, and expects the bits that a plain
 * call gives. Returns the recording, which lives in the caller's scope.
 */
export function replayEqualsEager(engine: Engine, { make, run }: Case): Recorded<readonly Tensor[]> {
  const list = (t: Tensor | readonly Tensor[]): readonly Tensor[] => (Array.isArray(t) ? t : [t as Tensor]);
  const eager = ([0, 1] as const).map((variant) => scope(() => list(run(make(engine, variant))).map(bits)));
  const inputs = make(engine, 0);
  const recorded = recordTape(engine, () => list(run(inputs)));
  const found = (): Uint8Array[] => recorded.outputs.map(bits);
  expect(found()).toEqual(eager[0]!);
  for (const variant of [1, 0] as const) {
    scope(() => make(engine, variant).forEach((t, i) => copyInto(t, inputs[i]!)));
    recorded.tape.replay();
    expect(found()).toEqual(eager[variant]!);
  }
  return recorded;
}
/** A case on float inputs of these shapes. */
export function floats(
  run: (...inputs: Tensor<"float32">[]) => Tensor | readonly Tensor[],
  ...shapes: number[][]
): Case {
  return {
    make: (engine, variant) =>
      shapes.map((shape, i) => normal(engine, "float32", shape, 1 + i + 10 * variant)),
    run: (inputs) => run(...(inputs as Tensor<"float32">[])),
  };
}
/** int32 values as a tensor. */
export function ints(engine: Engine, values: readonly number[], shape?: number[]): Tensor<"int32"> {
  return tensor([...values], shape ?? [values.length], {
    engine,
    dtype: "int32" as DType,
  }) as Tensor as Tensor<"int32">;
}
