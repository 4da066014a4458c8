/** Cases that no set has yet: other configurations of the models, and what no case may say. */
import "@heed/engine-cpu";
import { getEngine } from "@heed/tensor";
import { createRng, type SdpaCase, type VectorTensor } from "@heed/testkit";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { latentOracle, latentShapes, latentValues } from "../../../packages/attention/test/support/latent.ts";
import { gqaOracle } from "../../../packages/attention/test/support/oracle.ts";
import { type Problem, shapesOf } from "../../../packages/attention/test/support/problem.ts";
import { discover } from "../discover.ts";
import { type CaseResult, runSets } from "../run.ts";
import { runByLibrary } from "../runners.ts";
import { normCase, normTensors, writeSet, type Written } from "./vector-files.ts";

type Config = Readonly<Record<string, unknown>>;
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "heed-variants-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let sets = 0;
/** Runs cases over one file of tensors. */
async function run(cases: unknown, tensors: Readonly<Record<string, Written>>): Promise<CaseResult[]> {
  const at = join(folder, String(sets++));
  writeSet(at, "set", cases, tensors);
  return runSets(discover(at), runByLibrary, getEngine("portable"));
}
const rounded = (values: Float64Array): number[] => [...Float32Array.from(values)];

const [B, S] = [2, 9];
const LLAMA = {
  hidden_size: 24,
  num_attention_heads: 6,
  num_key_value_heads: 3,
  head_dim: 8,
  rope_theta: 500,
  max_position_embeddings: 64,
};
const NO_BIAS = { q: false, k: false, v: false, o: false };
const OPTIONS: Problem["options"] = {
  hiddenSize: 24,
  numHeads: 6,
  numKvHeads: 3,
  headDim: 8,
  bias: NO_BIAS,
  isCausal: true,
  rope: { base: 500, pairing: "half" },
};
const LLAMA3 = { factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 32 };
/** A configuration and, by hand, the layer that it means. */
const VARIANTS: Readonly<Record<string, readonly [Config, Partial<Problem["options"]>]>> = {
  "three groups of heads": [{}, {}],
  "one key head, no head_dim": [
    { num_key_value_heads: 1, head_dim: null, num_attention_heads: 4 },
    { numKvHeads: 1, numHeads: 4, headDim: 6 },
  ],
  "key heads unsaid": [{ num_key_value_heads: null }, { numKvHeads: 6 }],
  "another window": [{ sliding_window: 3 }, { window: { left: 2 } }],
  "a window, softcap and scale": [
    { sliding_window: 4, attn_logit_softcapping: 2, query_pre_attn_scalar: 16 },
    { window: { left: 3 }, softcap: 2, scale: 0.25 },
  ],
  "norms of queries and keys": [
    { qk_norm: true, rms_norm_eps: 1e-3, rms_norm_unit_offset: true },
    { qkNorm: { eps: 1e-3, unitOffset: true } },
  ],
  "biases and sinks": [
    { attention_bias: true, attention_sinks: true },
    { bias: { q: true, k: true, v: true, o: true }, sinks: true },
  ],
  "half of a head turns, in neighbouring pairs": [
    { partial_rotary_factor: 0.5, rope_interleaved: true },
    { rope: { base: 500, rotaryDim: 4, pairing: "interleaved" } },
  ],
  "no scaling, in words": [{ rope_scaling: { rope_type: "default" } }, {}],
  "linear scaling": [
    { rope_scaling: { type: "linear", factor: 4 } },
    { rope: { base: 500, pairing: "half", scaling: { type: "linear", factor: 4 } } },
  ],
  "llama3's scaling": [
    {
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 32,
      },
    },
    { rope: { base: 500, pairing: "half", scaling: { type: "llama3", ...LLAMA3 } } },
  ],
  YaRN: [
    { rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 } },
    { rope: { base: 500, pairing: "half", scaling: { type: "yarn", factor: 4, originalMaxPositions: 16 } } },
  ],
  "fields of the model around the layer": [
    { model_type: "llama", vocab_size: 100, attention_dropout: 0, torch_dtype: "float32" },
    {},
  ],
};
/** A model case of random weights, with the output of a float64 oracle, and its tensors. */
function modelOf(config: Config, options: Partial<Problem["options"]>) {
  const problem: Problem = {
    B,
    S,
    options: { ...OPTIONS, ...options },
    positions: 0,
    kvLengths: undefined,
    mask: undefined,
    seed: 3,
  };
  const rng = createRng(3);
  const normal = (n: number, std = 1): Float64Array => Float64Array.from(rounded(rng.normalArray(n, 0, std)));
  const size = (shape: readonly number[]): number => shape.reduce((n, d) => n * d, 1);
  const shapes = shapesOf(problem);
  const parameters = new Map([...shapes].map(([name, shape]) => [name, normal(size(shape), 0.4)]));
  const x = normal(B * S * 24);
  const output = gqaOracle(problem, { x, parameters, mask: undefined, past: undefined, context: undefined });
  const rows = (values: Float64Array): Written => ({ shape: [B, S, 24], data: [...values] });
  const weights = [...shapes].map(
    ([name, shape]) => [`w.${name}`, { shape, data: [...parameters.get(name)!] }] as const,
  );
  const named = (name: string): Readonly<Record<string, string>> => ({ [name]: name });
  const one = {
    name: "variant",
    model: "Llama",
    config: { ...LLAMA, ...config },
    tensors: {
      weights: Object.fromEntries([...shapes.keys()].map((name) => [name, `w.${name}`])),
      input: named("input"),
      output: named("output"),
      grad_output: { grad_output: "input" },
      grads: {},
    },
  };
  return { one, tensors: { ...Object.fromEntries(weights), input: rows(x), output: rows(output) } };
}

describe("a model of another configuration", () => {
  test.each(Object.keys(VARIANTS))("is run, prefill and decode: %s", async (variant) => {
    const [config, options] = VARIANTS[variant]!;
    const { one, tensors } = modelOf(config, options);
    const [result] = await run([one], tensors);
    expect([result!.status, result!.reason]).toEqual(["passed", undefined]);
    expect(result!.checks.map(({ name }) => name)).toEqual(["output", "vjp output", "decode_output"]);
  });
  test.each([3, null])("is run, prefill and decode: latent attention, q rank %p", async (qLoraRank) => {
    const options = {
      hiddenSize: 10,
      numHeads: 3,
      qLoraRank,
      kvLoraRank: 5,
      qkNopeHeadDim: 4,
      qkRopeHeadDim: 6,
      vHeadDim: 3,
      bias: false,
      rope: { base: 300, pairing: "half" as const },
      normEps: 1e-5,
    };
    const problem = { B, S, options, positions: 0, kvLengths: undefined, mask: undefined, seed: 4 };
    const exact = latentValues(problem);
    const parameters = new Map([...exact.parameters].map(([key, w]) => [key, Float64Array.from(rounded(w))]));
    const values = { parameters, x: Float64Array.from(rounded(exact.x)), mask: undefined };
    const shape = [B, S, 10];
    const weights = [...latentShapes(options)].map(
      ([key, size]) => [key, { shape: size, data: [...parameters.get(key)!] }] as const,
    );
    const one = {
      name: "latent",
      model: "DeepSeek-V3",
      config: {
        hidden_size: 10,
        num_attention_heads: 3,
        q_lora_rank: qLoraRank,
        kv_lora_rank: 5,
        qk_nope_head_dim: 4,
        qk_rope_head_dim: 6,
        v_head_dim: 3,
        rope_theta: 300,
        rms_norm_eps: 1e-5,
      },
      tensors: {
        weights: Object.fromEntries(weights.map(([key]) => [key, key])),
        input: { input: "x" },
        output: { output: "y" },
        grad_output: { grad_output: "x" },
        grads: {},
      },
    };
    const [result] = await run([one], {
      ...Object.fromEntries(weights),
      x: { shape, data: [...values.x] },
      y: { shape, data: [...latentOracle(problem, values)] },
    });
    expect([result!.status, result!.reason]).toEqual(["passed", undefined]);
  });
  test.each([
    ["window", { sliding_window: 4 }, { sliding_window: 3 }],
    ["base", {}, { rope_theta: 400 }],
    ["pairs", {}, { rope_interleaved: true }],
    ["scaling", {}, { rope_scaling: { type: "linear", factor: 4 } }],
    ["scale", {}, { query_pre_attn_scalar: 4 }],
    ["part that turns", {}, { partial_rotary_factor: 0.5 }],
  ] as const)("fails when its outputs are those of another %s", async (_what, config, other) => {
    const { one, tensors } = modelOf(config, "sliding_window" in config ? { window: { left: 3 } } : {});
    const [right, wrong] = await run(
      [one, { ...one, name: "wrong", config: { ...one.config, ...other } }],
      tensors,
    );
    expect([right!.status, wrong!.status]).toEqual(["passed", "failed"]);
    expect(wrong!.reason).toContain("output: worst at");
  });
  test.each([
    ["no layer knows attention_chunk_size, no_rope_layers", { attention_chunk_size: 4, no_rope_layers: [1] }],
    ["no layer knows attention_dropout", { attention_dropout: 0.1 }],
    ['no rotation is scaled as "mrope"', { rope_scaling: { type: "mrope", mrope_section: [1, 1, 2] } }],
    ["no linear scaling knows finetuned", { rope_scaling: { type: "linear", factor: 2, finetuned: true } }],
  ])("is not run, and says why: %s", async (reason, config) => {
    const { one, tensors } = modelOf({}, {});
    const [result] = await run([{ ...one, config: { ...one.config, ...config } }], tensors);
    expect([result!.status, result!.reason]).toEqual(["unsupported", reason]);
  });
  test("fields of another kind and weights that the layer does not have are failures that name them", async () => {
    const { one, tensors } = modelOf({}, {});
    const { "q_proj.weight": q, ...rest } = one.tensors.weights;
    const broken = [
      { ...one, name: "kind", config: { ...one.config, qk_norm: "projection" } },
      { ...one, name: "missing", tensors: { ...one.tensors, weights: rest } },
      { ...one, name: "more", tensors: { ...one.tensors, weights: { ...one.tensors.weights, gate: q } } },
      { ...one, name: "given", tensors: { ...one.tensors, position_ids: { position_ids: "input" } } },
    ];
    const results = await run(broken, tensors);
    expect(results.map(({ status }) => status)).toEqual(["failed", "failed", "failed", "unsupported"]);
    const words = [
      "config.qk_norm must be true",
      '"q_proj.weight"',
      '"gate"',
      "no layer is given position_ids",
    ];
    results.forEach(({ reason }, i) => expect(reason).toContain(words[i]!));
  });
});

describe("a case that says more than is known here is not run, and says what", () => {
  test("an ONNX attribute or input", async () => {
    const one = normCase("one") as { attributes: object; inputs: object };
    const results = await run(
      [
        { ...one, name: "attribute", attributes: { epsilon: 0, centre: 1 } },
        {
          ...one,
          name: "input",
          inputs: { ...one.inputs, bias: { tensor: "W", dtype: "float32", shape: [2] } },
        },
        { ...one, name: "stash", attributes: { epsilon: 0, stash_type: 11 } },
        { ...one, name: "weightless", inputs: { X: (one.inputs as { X: object }).X } },
      ],
      normTensors(),
    );
    expect(results.map(({ status, reason }) => [status, reason])).toEqual([
      ["unsupported", "RMSNormalization does not know centre"],
      ["unsupported", "RMSNormalization does not know bias"],
      ["failed", "TypeError: stash: stash_type must be 1, float32; got 11"],
      ["failed", "TypeError: weightless has no input W"],
    ]);
  });
  test("a parameter or tensor of an sdpa problem", async () => {
    const row = { shape: [1, 1, 1, 1], data: [1] };
    const params = { causal: false, window_left: null, softcap: null, scale: null, alibi: false };
    const tensors = { q: "one", k: "one", v: "one", output: "one", grad_output: "one" };
    const results = await run(
      [
        { name: "plain", params, tensors },
        { name: "parameter", params: { ...params, dropout: 0.5, varlen: false }, tensors },
        { name: "tensor", params, tensors: { ...tensors, attn_mask: "one" } },
      ],
      { one: row },
    );
    expect(results.map(({ status, reason }) => [status, reason])).toEqual([
      ["passed", undefined],
      ["unsupported", "attention does not know dropout"],
      ["unsupported", "attention does not know attn_mask"],
    ]);
  });
  test("and the run has not passed: exit code 1", () => {
    const at = join(folder, "odd");
    writeSet(
      at,
      "norm",
      [{ ...(normCase("one") as object), attributes: { epsilon: 0, odd: 1 } }],
      normTensors(),
    );
    const tool = join(import.meta.dir, "..", "main.ts");
    const { exitCode, stdout } = Bun.spawnSync([process.execPath, tool, at, "--engine", "portable"]);
    expect(exitCode).toBe(1);
    expect(stdout.toString()).toContain("unsupported:\n  RMSNormalization does not know odd: norm/one");
  });
  test("a boolean bias of an sdpa problem says who may attend", async () => {
    const tensors: Readonly<Record<string, VectorTensor>> = {
      one: { dtype: "float64", shape: [1, 1, 1, 1], data: Float64Array.of(1) },
      two: { dtype: "float64", shape: [1, 1, 2, 1], data: Float64Array.of(1, 3) },
      bias: { dtype: "bool", shape: [1, 1, 1, 2], data: Uint8Array.of(0, 1) },
      three: { dtype: "float64", shape: [1, 1, 1, 1], data: Float64Array.of(3) },
    };
    const none = { window_left: null, window_right: null, softcap: null, scale: null, kv_lengths: null };
    const roles = { q: "one", k: "two", v: "two", bias: "bias", grad_output: "one", output: "three" };
    const one: SdpaCase = { name: "one", params: { ...none, causal: false, alibi: false }, tensors: roles };
    const vectors = {
      cases: [one],
      tensor: (tensor: string) => tensors[tensor]!,
      values: () => new Float64Array(0),
    };
    const set = { kind: "sdpa", name: "bool", vectors } as const;
    const [result] = await runSets([set], runByLibrary, getEngine("portable"));
    expect([result!.status, result!.reason]).toEqual(["passed", undefined]);
  });
  test("a rotation of more components than there are angles is a failure", async () => {
    const slot = (tensor: string, shape: number[]) => ({ tensor, dtype: "float32", shape });
    const case_ = (name: string, attributes: object) => ({
      name,
      op: "RotaryEmbedding",
      attributes,
      inputs: {
        input: slot("x", [1, 1, 1, 4]),
        cos_cache: slot("c", [1, 1, 1]),
        sin_cache: slot("s", [1, 1, 1]),
      },
      outputs: { output: slot("y", [1, 1, 1, 4]) },
      slots: { inputs: ["input", "cos_cache", "sin_cache"], outputs: ["output"] },
    });
    const results = await run([case_("part", { rotary_embedding_dim: 2 }), case_("all", {})], {
      x: { shape: [1, 1, 1, 4], data: [1, 2, 3, 4] },
      c: { shape: [1, 1, 1], data: [0] },
      s: { shape: [1, 1, 1], data: [1] },
      y: { shape: [1, 1, 1, 4], data: [-2, 1, 3, 4] },
    });
    expect(results.map(({ status, reason }) => [status, reason])).toEqual([
      ["passed", undefined],
      ["failed", "TypeError: all: 4 components turn, but cos_cache has 1 angles"],
    ]);
  });
});
