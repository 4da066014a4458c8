import { describe, expect, test } from "bun:test";
import { portable } from "@heed/engine-cpu";
import type { OnnxCase, VectorSet, VectorTensor } from "@heed/testkit";
import { runSets } from "../run.ts";
import type { CaseResult } from "../run.ts";
import { runByLibrary } from "../runners.ts";

const float = (shape: readonly number[], ...values: readonly number[]): VectorTensor => ({
  dtype: "float32",
  shape,
  data: Float32Array.from(values),
});

/** Runs one case of an operator over the given tensors. */
async function runCase(
  op: string,
  inputs: Readonly<Record<string, VectorTensor>>,
  outputs: Readonly<Record<string, VectorTensor>>,
  attributes: OnnxCase["attributes"] = {},
): Promise<CaseResult> {
  const tensors = new Map([...Object.entries(inputs), ...Object.entries(outputs)]);
  const slots = (of: Readonly<Record<string, VectorTensor>>) =>
    Object.fromEntries(
      Object.entries(of).map(([tensor, { dtype, shape }]) => [tensor, { tensor, dtype, shape }]),
    );
  const one: OnnxCase = {
    name: "case",
    op,
    attributes,
    inputs: slots(inputs),
    outputs: slots(outputs),
    slots: { inputs: [], outputs: [] },
  };
  const vectors = {
    cases: [one],
    tensor: (name: string) => tensors.get(name)!,
  } as unknown as VectorSet<OnnxCase>;
  const [result] = await runSets([{ kind: "onnx", name: "set", vectors }], runByLibrary, portable());
  return result!;
}

/** One query of score 0 for each of three keys with the values 10, 20 and 60: what is hidden shows in the mean. */
const three = {
  Q: float([1, 1, 1, 1], 0),
  K: float([1, 1, 3, 1], 1, 2, 3),
  V: float([1, 1, 3, 1], 10, 20, 60),
};
const meanOf = (y: number) => ({ Y: float([1, 1, 1, 1], y) });

describe("a mask that covers fewer keys hides the others", () => {
  test("an additive one", async () => {
    const attn_mask = float([1, 2], 0, 0);
    expect(await runCase("Attention", { ...three, attn_mask }, meanOf(15))).toMatchObject({
      status: "passed",
    });
    expect(await runCase("Attention", { ...three, attn_mask }, meanOf(30))).toMatchObject({
      status: "failed",
    });
  });

  test("a boolean one", async () => {
    const attn_mask: VectorTensor = { dtype: "bool", shape: [1, 2], data: Uint8Array.of(1, 1) };
    expect(await runCase("Attention", { ...three, attn_mask }, meanOf(15))).toMatchObject({
      status: "passed",
    });
  });

  test("one of width 1 too", async () => {
    expect(await runCase("Attention", { ...three, attn_mask: float([1, 1], 5) }, meanOf(10))).toMatchObject({
      status: "passed",
    });
  });
});

test("without any option all keys are seen", async () => {
  expect(await runCase("Attention", three, meanOf(30))).toMatchObject({ status: "passed" });
});

test("a causal mask starts at the past's length", async () => {
  const past = { past_key: float([1, 1, 1, 1], 9), past_value: float([1, 1, 1, 1], 40) };
  const present = {
    present_key: float([1, 1, 4, 1], 9, 1, 2, 3),
    present_value: float([1, 1, 4, 1], 40, 10, 20, 60),
  };
  const attributes = { is_causal: 1 };
  expect(
    await runCase("Attention", { ...three, ...past }, { ...meanOf(25), ...present }, attributes),
  ).toMatchObject({
    status: "passed",
  });
});

test("an operator without a counterpart is unsupported", async () => {
  expect(await runCase("Gelu", {}, { Y: float([1], 0) })).toMatchObject({
    status: "unsupported",
    reason: "the ONNX operator Gelu has no counterpart",
  });
});

test("an output that nobody computes is a failure", async () => {
  expect(await runCase("Attention", three, { Z: float([1], 0) })).toMatchObject({
    status: "failed",
    reason: "TypeError: no output Z is computed",
  });
});
