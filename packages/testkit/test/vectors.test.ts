import { describe, expect, test } from "bun:test";
import {
  alibiSlopesFor,
  assertClose,
  attentionBackwardOracle,
  attentionOracle,
  broadcastMask,
  conformanceTolerance,
  findVectors,
  loadModelVectors,
  loadOnnxVectors,
  loadSdpaVectors,
  rmsNormOracle,
  ropeTableOracle,
  sumToMaskShape,
} from "../src/index.ts";
import type { OnnxCase, SdpaCase, VectorSet } from "../src/index.ts";

const folder = findVectors(import.meta.dir);

/** Swaps the middle axes of a row-major [a, b, c, d]. */
function swapMiddle(x: ArrayLike<number>, [a, b, c, d]: readonly number[]): Float64Array {
  const y = new Float64Array(x.length);
  for (let i = 0; i < a!; i++)
    for (let j = 0; j < b!; j++)
      for (let k = 0; k < c!; k++)
        for (let l = 0; l < d!; l++)
          y[((i * c! + k) * b! + j) * d! + l] = x[((i * b! + j) * c! + k) * d! + l]!;
  return y;
}

/** The oracle on a case of the sdpa set, tensors turned from [B, H, S, D] to the oracle's layout and back. */
function checkSdpa(set: VectorSet<SdpaCase>, { tensors, params }: SdpaCase): void {
  const shapeOf = (role: string): readonly number[] => set.tensor(tensors[role]!).shape;
  const turned = (role: string): Float64Array => swapMiddle(set.values(tensors[role]!), shapeOf(role));
  const [B, Hq, S, D] = shapeOf("q") as [number, number, number, number];
  const [, Hkv, Sk, Dv] = shapeOf("v") as [number, number, number, number];
  const dims = { B, S, Sk, Hq, Hkv, D, Dv };
  const bias = tensors.bias;
  const biasShape = bias ? set.tensor(bias).shape : [];
  const options = {
    dims,
    isCausal: params.causal,
    window: { left: params.window_left ?? undefined, right: params.window_right ?? undefined },
    softcap: params.softcap ?? undefined,
    scale: params.scale ?? undefined,
    kvLengths: params.kv_lengths ?? undefined,
    alibiSlopes: params.alibi ? alibiSlopesFor(Hq) : undefined,
    sinks: tensors.sinks ? set.values(tensors.sinks) : undefined,
    mask: bias ? broadcastMask("additive", set.values(bias), biasShape, dims) : undefined,
  };
  const [q, k, v, dOut] = [turned("q"), turned("k"), turned("v"), turned("grad_output")];
  const { out, lse } = attentionOracle(q, k, v, options);
  const gradients = attentionBackwardOracle(q, k, v, dOut, options);
  const rel = conformanceTolerance("float64", "forward");
  assertClose(out, turned("output"), { rel, name: "output", shape: [B, S, Hq, Dv] });
  assertClose(lse, set.values(tensors.lse!), { rel, name: "lse", shape: [B, Hq, S] });
  assertClose(gradients.dq, turned("grad_q"), { rel, name: "dq", shape: [B, S, Hq, D] });
  assertClose(gradients.dk, turned("grad_k"), { rel, name: "dk", shape: [B, Sk, Hkv, D] });
  assertClose(gradients.dv, turned("grad_v"), { rel, name: "dv", shape: [B, Sk, Hkv, Dv] });
  if (tensors.grad_sinks)
    assertClose(gradients.dSinks, set.values(tensors.grad_sinks), { rel, name: "dSinks" });
  if (tensors.grad_bias)
    assertClose(sumToMaskShape(gradients.dBias, biasShape, dims), set.values(tensors.grad_bias), {
      rel,
      name: "dBias",
      shape: biasShape,
    });
}

/** The ONNX operator: 4-D input is [B, H, S, D], 3-D is [B, S, H * D]; tables are by position or by token. */
function checkRope(set: VectorSet<OnnxCase>, { attributes, inputs, outputs }: OnnxCase): void {
  const read = (slot: string): Float64Array => set.values(inputs[slot]!.tensor);
  const { shape } = inputs.input!;
  const isFlat = shape.length === 3;
  const H = isFlat ? Number(attributes.num_heads) : shape[1]!;
  const D = isFlat ? shape[2]! / H : shape[3]!;
  const rotaryDim = Number(attributes.rotary_embedding_dim ?? 0) || D;
  const half = rotaryDim / 2;
  const perToken = (table: Float64Array): Float64Array =>
    inputs.position_ids
      ? Float64Array.from(
          [...read("position_ids")].flatMap((p) => [...table.subarray(p * half, (p + 1) * half)]),
        )
      : table;
  const turn = (x: Float64Array): Float64Array => (isFlat ? x : swapMiddle(x, shape));
  const y = ropeTableOracle(turn(read("input")), perToken(read("cos_cache")), perToken(read("sin_cache")), {
    H,
    D,
    rotaryDim,
    pairing: attributes.interleaved ? "interleaved" : "half",
  });
  const expected = turn(set.values(outputs.output!.tensor));
  assertClose(y, expected, { rel: conformanceTolerance("float32", "forward"), name: "output" });
}

function checkRmsNorm(set: VectorSet<OnnxCase>, { attributes, inputs, outputs }: OnnxCase): void {
  const { shape } = inputs.X!;
  const axis = Number(attributes.axis ?? -1);
  const n = shape.slice(axis).reduce((a, size) => a * size, 1);
  const { y } = rmsNormOracle(set.values(inputs.X!.tensor), {
    n,
    eps: Number(attributes.epsilon ?? 1e-5),
    weight: set.values(inputs.W!.tensor),
  });
  const rel = conformanceTolerance("float32", "forward");
  assertClose(y, set.values(outputs.Y!.tensor), { rel, name: "Y", shape });
}

if (folder === undefined) {
  test.skip("conformance vectors: no shared/conformance beside this checkout", () => {});
} else {
  describe("sdpa vectors equal the oracle, gradients included", () => {
    const set = loadSdpaVectors(folder);
    test("all 13 are there", () => expect(set.cases.length).toBe(13));
    for (const one of set.cases) test(one.name, () => checkSdpa(set, one));
  });

  describe("onnx rotary_embedding vectors equal the oracle", () => {
    const set = loadOnnxVectors(folder, "onnx/rotary_embedding");
    test("all 8 are there", () => expect(set.cases.length).toBe(8));
    for (const one of set.cases) test(one.name, () => checkRope(set, one));
  });

  describe("onnx rms_normalization vectors equal the oracle", () => {
    const set = loadOnnxVectors(folder, "onnx/rms_normalization");
    test("all 19 are there", () => expect(set.cases.length).toBe(19));
    for (const one of set.cases) test(one.name, () => checkRmsNorm(set, one));
  });

  describe("every tensor that a manifest names can be read", () => {
    test("onnx/attention", () => {
      const set = loadOnnxVectors(folder, "onnx/attention");
      expect(set.cases.length).toBe(87);
      for (const { inputs, outputs } of set.cases)
        for (const slot of [...Object.values(inputs), ...Object.values(outputs)]) {
          const { dtype, shape } = set.tensor(slot.tensor);
          expect({ dtype, shape }).toEqual({ dtype: slot.dtype as typeof dtype, shape: slot.shape });
        }
    });

    test("models", () => {
      const set = loadModelVectors(folder);
      expect(set.cases.length).toBe(10);
      for (const { tensors } of set.cases)
        for (const group of Object.values(tensors))
          for (const name of Object.values(group)) expect(set.values(name).every(Number.isFinite)).toBe(true);
    });
  });
}
