/** Llama 3, Gemma and gpt-oss attention against the outputs and gradients of their published PyTorch code. */
import "@heed/engine-cpu";
import { getEngine, scope, type Tensor, toFloat64 } from "@heed/tensor";
import {
  assertClose,
  conformanceTolerance,
  findVectors,
  loadModelVectors,
  type ModelCase,
} from "@heed/testkit";
import { describe, test } from "bun:test";
import { GroupedQueryAttention, type GroupedQueryAttentionOptions, type RopeScaling } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";
import { createPages } from "./support/reader.ts";

/** Hugging Face fields of the models that grouped-query attention covers. */
interface Config {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rope_theta: number;
  readonly rope_interleaved: boolean;
  readonly rope_scaling?: {
    readonly rope_type: string;
    readonly factor: number;
    readonly original_max_position_embeddings: number;
    readonly truncate: boolean;
  } | null;
  readonly sliding_window?: number | null;
  readonly attn_logit_softcapping?: number | null;
  readonly query_pre_attn_scalar?: number | null;
  readonly qk_norm?: boolean;
  readonly rms_norm_eps?: number;
  readonly rms_norm_unit_offset?: boolean;
  readonly attention_bias?: boolean;
  readonly attention_sinks?: boolean;
}
/** gpt-oss's, the only scaling among these models. */
function scalingOf(s: Config["rope_scaling"]): RopeScaling | undefined {
  if (s === null || s === undefined) return undefined;
  if (s.rope_type !== "yarn") throw new TypeError(`no test reads rope_type ${s.rope_type}`);
  return {
    type: "yarn",
    factor: s.factor,
    originalMaxPositions: s.original_max_position_embeddings,
    truncate: s.truncate,
  };
}
function optionsOf(c: Config): GroupedQueryAttentionOptions {
  return {
    hiddenSize: c.hidden_size,
    numHeads: c.num_attention_heads,
    numKvHeads: c.num_key_value_heads,
    headDim: c.head_dim,
    rope: {
      base: c.rope_theta,
      pairing: c.rope_interleaved ? "interleaved" : "half",
      scaling: scalingOf(c.rope_scaling),
    },
    bias: c.attention_bias,
    sinks: c.attention_sinks,
    softcap: c.attn_logit_softcapping,
    ...(c.sliding_window && { window: { left: c.sliding_window - 1 } }),
    ...(c.query_pre_attn_scalar && { scale: c.query_pre_attn_scalar ** -0.5 }),
    ...(c.qk_norm && { qkNorm: { eps: c.rms_norm_eps, unitOffset: c.rms_norm_unit_offset } }),
  };
}
const folder = findVectors(import.meta.dir);
const set = folder === undefined ? undefined : loadModelVectors(folder);
const covered = (set?.cases ?? []).filter(({ model }) => ["llama3", "gemma", "gpt_oss"].includes(model));
if (set === undefined) test.skip("model vectors: no shared/conformance beside the checkout", () => {});

describe.each(engines)("published models on %s", (name) => {
  const engine = getEngine(name);
  const load = (key: string): Tensor<"float32"> =>
    upload(set!.values(key), set!.tensor(key).shape, "float32", engine);
  const check = (found: Tensor, key: string, of: "model" | "gradient"): void =>
    void assertClose(toFloat64(found), set!.values(key), {
      rel: conformanceTolerance("float32", of),
      name: key,
      shape: found.shape,
    });
  const build = ({ config, tensors }: ModelCase): GroupedQueryAttention => {
    const weights = Object.entries(tensors["weights"]!).map(([key, stored]) => [key, load(stored)] as const);
    return GroupedQueryAttention.fromParameters(
      optionsOf(config as unknown as Config),
      new Map<string, Tensor>(weights),
    );
  };
  for (const model of covered) {
    test(`${model.name}: output and gradients`, () => {
      scope(() => {
        const { tensors } = model;
        const layer = build(model);
        const x = load(tensors["input"]!["input"]!);
        check(layer.forward(x), tensors["output"]!["output"]!, "model");
        const pass = layer.vjp(x);
        check(pass.output, tensors["output"]!["output"]!, "model");
        const { input, parameters } = pass.backward(load(tensors["grad_output"]!["grad_output"]!));
        const { input: inputKey, ...rest } = tensors["grads"]!;
        check(input, inputKey!, "gradient");
        for (const [key, stored] of Object.entries(rest)) check(parameters.get(key)!, stored, "gradient");
      });
    });
    if (model.tensors["decode_output"] === undefined) continue;
    test(`${model.name}: prefill, then one token at a time through a cache`, () => {
      scope(() => {
        const layer = build(model);
        const x = load(model.tensors["input"]!["input"]!);
        const [B, S] = x.shape as readonly number[] as [number, number];
        const prefill = Number(/first (\d+) tokens/.exec(model.note ?? "")?.[1] ?? Math.floor(S / 2));
        const { numKvHeads, headDim } = layer.config;
        const pages = createPages(B, { numKvHeads, headDim, dtype: "float32", engine });
        const expected = load(model.tensors["decode_output"]!["decode_output"]!);
        for (let from = 0, to = prefill; from < S; from = to, to++) {
          const y = layer.forward(x.slice(1, from, to), {
            cache: pages.step(new Array<number>(B).fill(to - from)),
          });
          assertClose(toFloat64(y), toFloat64(expected.slice(1, from, to)), {
            rel: conformanceTolerance("float32", "model"),
            name: `tokens ${from}..${to - 1}`,
          });
        }
      });
    });
  }
});
