/** What an operation leaves behind when a call of the library fails in the middle of it, outside any scope: nothing. */
import {
  add,
  arange,
  attentionScores,
  attentionVjp,
  attentionWithLse,
  cast,
  concat,
  DeviceError,
  full,
  type FusedMode,
  gather,
  kvAppend,
  linear,
  linearBackward,
  matmul,
  mean,
  neg,
  normRopeAppend,
  OutOfMemoryError,
  pagedAttentionWithLse,
  randn,
  rmsNorm,
  rmsNormBackward,
  rope,
  scatterAdd,
  sealPages,
  softmax,
  sum,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { openNative } from "../src/devices.ts";
import { createCudaEngine, type CudaEngine } from "../src/engine.ts";
import { emulatedMissing } from "./support.ts";

/** Calls that a device can refuse while an operation runs, the status that each gives then, and its error. */
const FAILING = [
  ["launch", -4, DeviceError],
  ["gemm", -4, DeviceError],
  ["upload", -4, DeviceError],
  ["alloc", -2, OutOfMemoryError],
] as const;

/** Runs with the n-th of such calls refused; whether it was made, and what was thrown. */
function failing(
  name: (typeof FAILING)[number][0],
  n: number,
  status: number,
  run: () => void,
): { made: boolean; error: unknown } {
  const { symbols } = openNative("emulated");
  const { [name]: original, last_error } = symbols;
  let left = n;
  Object.assign(symbols, {
    [name]: (...args: unknown[]) =>
      --left === 0 ? status : (original as (...args: unknown[]) => number)(...args),
    last_error: () =>
      left <= 0 ? "testing: CUDA_ERROR_INVALID_VALUE (1): a word of the driver" : last_error(),
  });
  let error: unknown;
  try {
    run();
  } catch (thrown) {
    error = thrown;
  } finally {
    Object.assign(symbols, { [name]: original, last_error });
  }
  return { made: left <= 0, error };
}
/** Disposes what an operation returned: a tensor, or tensors by name. */
function free(result: unknown): void {
  if (typeof result !== "object" || result === null) return;
  const { [Symbol.dispose]: dispose } = result as Partial<Disposable>;
  for (const part of dispose === undefined || "backward" in result ? Object.values(result) : []) free(part);
  dispose?.call(result);
}
type Operation = (engine: CudaEngine) => {
  readonly operands: readonly Tensor[];
  readonly run: () => unknown;
};

const of = (shape: readonly number[], engine: CudaEngine): Tensor<"bfloat16"> =>
  randn(shape, { dtype: "bfloat16", engine });
const int32 = (values: readonly number[], engine: CudaEngine): Tensor<"int32"> =>
  tensor(Int32Array.from(values), undefined, { dtype: "int32", engine });

/** On operands of the given shapes in bfloat16. */
const on =
  (shapes: readonly (readonly number[])[], run: (...operands: Tensor<"bfloat16">[]) => unknown): Operation =>
  (engine) => {
    const operands = shapes.map((shape) => of(shape, engine));
    return { operands, run: () => run(...operands) };
  };
const making =
  (run: (engine: CudaEngine) => unknown): Operation =>
  (engine) => ({ operands: [], run: () => run(engine) });

const CORE: Readonly<Record<string, Operation>> = {
  "add of tensors": on([[3, 4], [4]], (a, b) => add(a, b)),
  "add of a number": on([[3, 4]], (a) => add(a, 2)),
  neg: on([[3, 4]], neg),
  matmul: on(
    [
      [3, 4],
      [4, 5],
    ],
    (a, b) => matmul(a, b),
  ),
  "matmul over nothing": on(
    [
      [3, 0],
      [0, 5],
    ],
    (a, b) => matmul(a, b),
  ),
  sum: on([[3, 4]], (x) => sum(x, { axes: [1] })),
  "sum that keeps its axis": on([[3, 4]], (x) => sum(x, { axes: [1], keepDims: true })),
  "sum of nothing": on([[3, 0]], (x) => sum(x, { axes: [1] })),
  mean: on([[3, 4]], (x) => mean(x)),
  softmax: on([[3, 4]], softmax),
  cast: on([[3, 4]], (x) => cast(x, "float64")),
  concat: on(
    [
      [3, 4],
      [2, 4],
    ],
    (a, b) => concat([a, b]),
  ),
  contiguous: on([[3, 4]], (x) => {
    using turned = x.transpose();
    return turned.contiguous();
  }),
  tensor: making((engine) => tensor([1, 2], undefined, { engine })),
  full: making((engine) => full([3], 2, { engine })),
  arange: making((engine) => arange(0, 5, 1, { engine })),
  gather: (engine) => {
    const [x, at] = [of([3, 4], engine), int32([2, 0], engine)];
    return { operands: [x, at], run: () => gather(x, at) };
  },
  scatterAdd: (engine) => {
    const [x, at, out] = [of([2, 4], engine), int32([2, 0], engine), of([3, 4], engine)];
    return { operands: [x, at, out], run: () => scatterAdd(x, at, out) };
  },
};
/** Pages, a table of one sequence and new rows. */
function cache(engine: CudaEngine) {
  const [kPages, vPages] = [of([4, 2, 8, 64], engine), of([4, 2, 8, 64], engine)];
  const table = {
    queryIndptr: int32([0, 3], engine),
    indptr: int32([0, 2], engine),
    indices: int32([3, 1], engine),
    lengths: int32([12], engine),
    slots: int32([9, 10, 11], engine),
  };
  const [q, k, v] = [of([3, 4, 64], engine), of([3, 2, 64], engine), of([3, 2, 64], engine)];
  const operands = [kPages, vPages, q, k, v, ...Object.values(table)];
  return { kPages, vPages, table: { ...table, epoch: 1 }, q, k, v, operands };
}
function int4Pages(engine: CudaEngine) {
  const pages = (scales: readonly number[]) => ({
    format: "int4" as const,
    codes: full([2, 1, 32, 32], 0, { dtype: "uint8", engine }),
    scales: full([2, 1, ...scales], 1, { engine }),
    zeros: full([2, 1, ...scales], 0, { engine }),
    residual: of([1, 1, 32, 64], engine),
  });
  return [pages([1, 64]), pages([2, 32])] as const;
}
const ATTENTION = [
  [1, 5, 4, 64],
  [1, 5, 2, 64],
  [1, 5, 2, 64],
];
const FUSED: Readonly<Record<string, (fused: FusedMode) => Operation>> = {
  linear: (fused) => on([[3, 8], [4, 8], [4]], (x, w, bias) => linear(x, w, { bias, fused })),
  rmsNorm: (fused) => on([[3, 8], [8]], (x, w) => rmsNorm(x, w, { fused })),
  rmsNormBackward: (fused) =>
    on([[3, 8], [8], [3, 8]], (x, w, dOut) => rmsNormBackward(x, w, dOut, { fused })),
  attention: (fused) => on(ATTENTION, (q, k, v) => attentionWithLse(q, k, v, { isCausal: true, fused })),
  "attention with its gradients": (fused) =>
    on([...ATTENTION, [1, 5, 4, 64]], (q, k, v, dOut) => {
      using vjp = attentionVjp(q, k, v, { isCausal: true, fused });
      using _ = vjp.output;
      return vjp.backward(dOut!);
    }),
  rope: (fused) => (engine) => {
    const [x, cos, sin] = [of([1, 3, 2, 8], engine), randn([3, 4], { engine }), randn([3, 4], { engine })];
    return { operands: [x, cos, sin], run: () => rope(x, cos, sin, { fused }) };
  },
  pagedAttention: (fused) => (engine) => {
    const { q, operands, ...view } = cache(engine);
    return { operands, run: () => pagedAttentionWithLse(q, view, { fused }) };
  },
  kvAppend: (fused) => (engine) => {
    const { k, v, kPages, vPages, table, operands } = cache(engine);
    return { operands, run: () => kvAppend(k, v, kPages, vPages, table.slots, { fused }) };
  },
  normRopeAppend: (fused) => (engine) => {
    const { q, k, v, operands, ...view } = cache(engine);
    return { operands, run: () => normRopeAppend(q, k, v, { ...view, slots: view.table.slots }, { fused }) };
  },
  sealPages: (fused) => (engine) => {
    const [k, v] = int4Pages(engine);
    const [from, to] = [int32([0], engine), int32([1], engine)];
    const operands = [k, v].flatMap(({ codes, scales, zeros, residual }) => [codes, scales, zeros, residual]);
    return { operands: [...operands, from, to], run: () => sealPages(k, v, from, to, { fused }) };
  },
};
const OPERATIONS: readonly (readonly [string, Operation])[] = [
  ...Object.entries(CORE),
  ["attentionScores", on(ATTENTION, (q, k, v) => attentionScores(q, k, v))],
  [
    "linearBackward",
    on(
      [
        [3, 8],
        [4, 8],
        [3, 4],
      ],
      (x, w, dOut) => linearBackward(x, w, dOut),
    ),
  ],
  ...Object.entries(FUSED).flatMap(([name, make]) =>
    (["require", "off"] as const).map((fused) => [`${name}, fused: ${fused}`, make(fused)] as const),
  ),
];
describe.skipIf(emulatedMissing !== undefined)("an operation of which any one call fails", () => {
  test.each(OPERATIONS)("throws and keeps no memory: %s", (_, operation) => {
    const engine = createCudaEngine("own", "emulated", 0);
    const { operands, run } = operation(engine);
    const { blocks } = engine.memory();
    let failures = 0;
    for (const [name, status, type] of FAILING)
      for (let n = 1; ; n++) {
        const { made, error } = failing(name, n, status, () => free(run()));
        expect([name, n, engine.memory().blocks]).toEqual([name, n, blocks]);
        if (!made) {
          expect(error).toBeUndefined();
          break;
        }
        failures++;
        expect(error).toBeInstanceOf(type);
      }
    expect(failures).toBeGreaterThan(0);
    for (const t of operands) t[Symbol.dispose]();
    expect(engine.memory().blocks).toBe(0);
    engine.close();
  });
});
