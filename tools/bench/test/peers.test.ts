import { describe, expect, test } from "bun:test";
import { encodeModel, varint } from "../peers/onnx-proto.ts";
import { kernelTimes, openPeerRuntime } from "../peers/onnxruntime.ts";
import type { PeerRuntime } from "../peers/onnxruntime.ts";
import type { AttentionShape } from "../peers/onnx-model.ts";
import { uniform } from "../random.ts";

const shape: AttentionShape = {
  batch: 1,
  queryLength: 5,
  totalLength: 5,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  capacity: 5,
};

/** Reads element d of head h at token t. */
type Rows = (t: number, h: number, d: number) => number;

/** Rows of [tokens, heads, D]. */
const tokenMajor =
  (data: ArrayLike<number>, heads: number): Rows =>
  (t, h, d) =>
    data[(t * heads + h) * shape.headDim + d]!;

/** Rows of [heads, capacity, D]. */
const headMajor =
  (data: ArrayLike<number>, capacity: number): Rows =>
  (t, h, d) =>
    data[(h * capacity + t) * shape.headDim + d]!;

/** softmax(q.k / sqrt(D)) v in float64 for query positions `first` to `first + count - 1`, causal: [count, Hq * D]. */
function reference(first: number, count: number, q: Rows, k: Rows, v: Rows): number[] {
  const { numHeads, numKvHeads, headDim } = shape;
  const out: number[] = [];
  for (let i = 0; i < count; i++) {
    for (let h = 0; h < numHeads; h++) {
      const kv = Math.floor((h * numKvHeads) / numHeads);
      const weights: number[] = [];
      for (let j = 0; j <= first + i; j++) {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += q(i, h, d) * k(j, kv, d);
        weights.push(Math.exp(dot / Math.sqrt(headDim)));
      }
      const z = weights.reduce((a, b) => a + b, 0);
      for (let d = 0; d < headDim; d++) out.push(weights.reduce((sum, w, j) => sum + w * v(j, kv, d), 0) / z);
    }
  }
  return out;
}

function expectClose(actual: ArrayLike<number>, expected: readonly number[]): void {
  expect(actual.length).toBe(expected.length);
  expected.forEach((value, i) => expect(actual[i]).toBeCloseTo(value, 5));
}

/** x [rows, inner] times w [inner, columns] in float64. */
function product(x: ArrayLike<number>, w: ArrayLike<number>, inner: number, columns: number): number[] {
  return Array.from({ length: (x.length / inner) * columns }, (_, index) => {
    const row = Math.floor(index / columns);
    let sum = 0;
    for (let i = 0; i < inner; i++) sum += x[row * inner + i]! * w[i * columns + (index % columns)]!;
    return sum;
  });
}

const runtime: PeerRuntime | string = await openPeerRuntime(2).catch((error: Error) => error.message);
const available = typeof runtime !== "string";
const peers = runtime as PeerRuntime;

describe.skipIf(!available)(`onnxruntime as a peer${available ? "" : `: ${runtime as string}`}`, () => {
  const width = shape.numHeads * shape.headDim;
  const keyWidth = shape.numKvHeads * shape.headDim;

  test("prefill is causal grouped-query attention", async () => {
    const [q, k, v] = [uniform(5 * width, 1), uniform(5 * keyWidth, 2), uniform(5 * keyWidth, 3)] as const;
    const peer = await peers.prefill(shape, q, k, v);
    await peer.run();
    expectClose(peer.output, reference(0, 5, tokenMajor(q, 4), tokenMajor(k, 2), tokenMajor(v, 2)));
    const times = await peer.close();
    expect(times).toHaveLength(1);
    expect(times[0]).toBeGreaterThan(0);
  });

  test("a decode step appends to the caller's cache and attends over it", async () => {
    const capacity = 9;
    const step = {
      query: uniform(width, 1),
      key: uniform(keyWidth, 2),
      value: uniform(keyWidth, 3),
      keyCache: uniform(keyWidth * capacity, 4),
      valueCache: uniform(keyWidth * capacity, 5),
    };
    const peer = await peers.decode({ ...shape, queryLength: 1, totalLength: 7, capacity }, step);
    await peer.run();
    await peer.run();
    expect(headMajor(step.keyCache, capacity)(6, 1, 3)).toBe(step.key[shape.headDim + 3]!);
    expect(headMajor(step.valueCache, capacity)(6, 0, 0)).toBe(step.value[0]!);
    const [k, v] = [headMajor(step.keyCache, capacity), headMajor(step.valueCache, capacity)];
    expectClose(peer.output, reference(6, 1, tokenMajor(step.query, 4), k, v));
    expect(await peer.close()).toHaveLength(2);
  });

  test("a layer is its projections around attention", async () => {
    const hidden = 6;
    const x = uniform(5 * hidden, 1);
    const weights = {
      q: uniform(hidden * width, 2),
      k: uniform(hidden * keyWidth, 3),
      v: uniform(hidden * keyWidth, 4),
      output: uniform(width * hidden, 5),
    };
    const peer = await peers.layer(shape, hidden, weights, x);
    await peer.run();
    const project = (weight: Float32Array, columns: number): Rows =>
      tokenMajor(product(x, weight, hidden, columns), columns / shape.headDim);
    const attended = reference(
      0,
      5,
      project(weights.q, width),
      project(weights.k, keyWidth),
      project(weights.v, keyWidth),
    );
    expectClose(peer.output, product(attended, weights.output, width, hidden));
    await peer.close();
  });

  test("a linear peer multiplies by its constant weight", async () => {
    const [x, weight] = [uniform(3 * 4, 1), uniform(4 * 2, 2)] as const;
    const peer = await peers.linear(3, 4, 2, x, weight);
    await peer.run();
    expectClose(peer.output, product(x, weight, 4, 2));
    await peer.close();
  });
});

describe("the model writer", () => {
  test("varints are protobuf's", () => {
    expect([...varint(0)]).toEqual([0]);
    expect([...varint(300)]).toEqual([0xac, 0x02]);
    expect([...varint(-1)]).toEqual([255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
  });

  test("a graph input has its type and its dimensions", () => {
    const bytes = encodeModel({
      opsets: { "": 21 },
      nodes: [],
      inputs: [{ name: "x", dtype: "int32", shape: [2, "n"] }],
      outputs: [],
    });
    // type { tensor_type { elem_type: 6, shape { dim { dim_value: 2 } dim { dim_param: "n" } } } }
    const type = [0x12, 0x0f, 0x0a, 0x0d, 0x08, 6, 0x12, 0x09, 0x0a, 2, 8, 2, 0x0a, 3, 0x12, 1, 110];
    expect(Buffer.from(bytes).includes(Uint8Array.from([0x0a, 1, 120, ...type]))).toBe(true);
  });
});

test("kernel times are summed by run and given in nanoseconds", () => {
  const node = (dur: number) => ({ name: "MatMul_0_kernel_time", dur });
  const run = { name: "model_run", dur: 99 };
  const load = { name: "model_loading_array", dur: 7 };
  expect(kernelTimes([load, node(2), node(3), run, node(4), run])).toEqual([5000, 4000]);
});
