/* oxlint-disable oxc/approx-constant -- DeepSeek-V2-Lite says 0.707, not sqrt(1/2) */
import { ArgumentError, FormatError, HeedError, UnsupportedError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  attentionConfigFromHF,
  type GroupedQueryAttentionOptions,
  type JsonObject,
  type MultiHeadLatentAttentionOptions,
} from "../src/index.ts";
import { resolveHeadConfig, resolveRope } from "../src/gqa-options.ts";
import { resolveLatentConfig, resolveLatentRope } from "../src/mla-options.ts";
import { PUBLISHED } from "./support/hf-configs.ts";

function grouped(json: JsonObject, layer?: number): GroupedQueryAttentionOptions {
  const made = attentionConfigFromHF(json, layer);
  if (made.operation !== "GroupedQueryAttention") throw new TypeError(made.operation);
  return made.options;
}
function latent(json: JsonObject, layer?: number): MultiHeadLatentAttentionOptions {
  const made = attentionConfigFromHF(json, layer);
  if (made.operation !== "MultiHeadLatentAttention") throw new TypeError(made.operation);
  return made.options;
}
const NO_SCALING = { type: "none" } as const;
const rope = (base: number, rotaryDim: number, scaling: object = NO_SCALING): object => ({
  base,
  pairing: "half",
  rotaryDim,
  scaling,
});

describe("published models", () => {
  test("Llama 3.1: grouped heads and its own frequency rule", () => {
    expect(attentionConfigFromHF(PUBLISHED["Llama-3.1-8B"], 5)).toEqual({
      operation: "GroupedQueryAttention",
      dtype: "bfloat16",
      options: {
        hiddenSize: 4096,
        numHeads: 32,
        numKvHeads: 8,
        headDim: 128,
        bias: false,
        rope: rope(500000, 128, {
          type: "llama3",
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxPositions: 8192,
        }) as GroupedQueryAttentionOptions["rope"],
        window: undefined,
        layerIndex: 5,
      },
    });
  });
  test("Mistral: a window in every layer, or in none; a head size of its own", () => {
    expect(grouped(PUBLISHED["Mistral-7B-v0.1"], 31)).toMatchObject({ window: { left: 4095 }, headDim: 128 });
    expect(grouped(PUBLISHED["Mistral-Nemo-Base"])).toMatchObject({
      window: undefined,
      headDim: 128,
      hiddenSize: 5120,
      rope: rope(1e6, 128),
    });
  });
  test("Qwen 2.5: biases of q, k and v, no window", () => {
    expect(grouped(PUBLISHED["Qwen2.5-7B"])).toMatchObject({
      numHeads: 28,
      numKvHeads: 4,
      headDim: 128,
      bias: { q: true, k: true, v: true, o: false },
      window: undefined,
    });
  });
  test("Qwen slides from max_window_layers on where it is told to", () => {
    const json = { ...PUBLISHED["Qwen2.5-7B"], use_sliding_window: true, max_window_layers: 20 };
    expect(grouped(json, 19).window).toBeUndefined();
    expect(grouped(json, 20).window).toEqual({ left: 131071 });
  });
  test("Qwen 3: head norms, no biases, heads wider than hidden / heads", () => {
    expect(grouped(PUBLISHED["Qwen3-0.6B"])).toMatchObject({
      headDim: 128,
      bias: false,
      qkNorm: { eps: 1e-6, unitOffset: false },
      window: undefined,
    });
  });
  test("Gemma 2: softcap, its own scale, a window in even layers", () => {
    const json = PUBLISHED["gemma-2-27b"];
    expect(grouped(json, 0)).toMatchObject({ softcap: 50, scale: 144 ** -0.5, window: { left: 4095 } });
    expect(grouped(json, 0).qkNorm).toBeUndefined();
    expect(grouped(json, 1).window).toBeUndefined();
    expect(attentionConfigFromHF(json).dtype).toBe("float32");
  });
  test("Gemma 3: five layers with a window and their own theta, then one of the full context", () => {
    const json = PUBLISHED["gemma-3-1b-it"];
    for (const layer of [0, 4, 6, 10])
      expect(grouped(json, layer)).toMatchObject({ window: { left: 511 }, rope: rope(10000, 256) });
    for (const layer of [5, 11])
      expect(grouped(json, layer)).toMatchObject({ window: undefined, rope: rope(1e6, 256) });
    expect(grouped(json)).toMatchObject({
      qkNorm: { eps: 1e-6, unitOffset: true },
      scale: 1 / 16,
      softcap: undefined,
    });
  });
  test("Gemma 3, multimodal: the text model's config over its class's defaults; scaling in full layers alone", () => {
    const json = PUBLISHED["gemma-3-4b-it"];
    expect(grouped(json, 5)).toMatchObject({
      numHeads: 8,
      numKvHeads: 4,
      headDim: 256,
      rope: rope(1e6, 256, { type: "linear", factor: 8 }),
    });
    expect(grouped(json, 0)).toMatchObject({ window: { left: 1023 }, rope: rope(10000, 256) });
    expect(attentionConfigFromHF(json).dtype).toBe("bfloat16");
  });
  test("gpt-oss: sinks, biases, a window in the layers that layer_types names, YaRN with an exact ramp", () => {
    const types = Array.from({ length: 24 }, (_, i) =>
      i % 2 === 0 ? "sliding_attention" : "full_attention",
    );
    const json = { ...PUBLISHED["gpt-oss-20b"], layer_types: types };
    expect(grouped(PUBLISHED["gpt-oss-20b"], 3)).toEqual(grouped(json, 3)); // the class's own pattern
    const scaling = {
      type: "yarn",
      factor: 32,
      originalMaxPositions: 4096,
      betaFast: 32,
      betaSlow: 1,
      truncate: false,
    };
    expect(grouped(json, 0)).toMatchObject({
      sinks: true,
      bias: true,
      headDim: 64,
      window: { left: 127 },
      rope: rope(150000, 64, scaling),
    });
    expect(grouped(json, 1).window).toBeUndefined();
    expect(attentionConfigFromHF(json).dtype).toBeUndefined();
  });
  test("Phi-3: one weight for q, k and v, and factors per pair", () => {
    const json = PUBLISHED["Phi-3-mini-128k"];
    expect(grouped(json)).toMatchObject({
      mergedQkv: true,
      bias: false,
      window: { left: 262143 },
      rope: {
        rotaryDim: 96,
        scaling: {
          type: "longrope",
          shortFactor: json.rope_scaling.short_factor,
          longFactor: json.rope_scaling.long_factor,
          originalMaxPositions: 4096,
          factor: 32,
        },
      },
    });
    const inside = { ...json.rope_scaling, original_max_position_embeddings: 8192 };
    expect(grouped({ ...json, rope_scaling: inside }).rope).toMatchObject({
      scaling: { originalMaxPositions: 8192, factor: 16 },
    });
    const early = { ...json, rope_scaling: { ...json.rope_scaling, type: "su" } };
    expect(grouped(early)).toEqual(grouped(json));
  });
  test("Phi-4-mini: three quarters of a head turn", () => {
    const json = { ...PUBLISHED["Phi-3-mini-128k"], num_attention_heads: 24, num_key_value_heads: 8 };
    expect(grouped({ ...json, partial_rotary_factor: 0.75 })).toMatchObject({
      headDim: 128,
      rope: { rotaryDim: 96 },
    });
  });
  test("DeepSeek-V2-Lite: one full query projection, YaRN in the softmax's scale", () => {
    const options = latent(PUBLISHED["DeepSeek-V2-Lite"], 26);
    expect(options).toEqual({
      hiddenSize: 2048,
      numHeads: 16,
      qLoraRank: null,
      kvLoraRank: 512,
      qkNopeHeadDim: 128,
      qkRopeHeadDim: 64,
      vHeadDim: 128,
      bias: false,
      normEps: 1e-6,
      rope: {
        base: 10000,
        pairing: "interleaved",
        rotaryDim: 64,
        scaling: {
          type: "yarn",
          factor: 40,
          originalMaxPositions: 4096,
          betaFast: 32,
          betaSlow: 1,
          mscale: 0.707,
          mscaleAllDim: 0.707,
        },
      },
      layerIndex: 26,
    });
    const temperature = 0.1 * 0.707 * Math.log(40) + 1;
    expect(resolveLatentConfig(options).scale).toBeCloseTo(temperature ** 2 / Math.sqrt(192), 12);
  });
  test("DeepSeek-V3: queries through a latent row; rope_interleave may say otherwise", () => {
    expect(latent(PUBLISHED["DeepSeek-V3"])).toMatchObject({ qLoraRank: 1536, numHeads: 128 });
    const halves = latent({ ...PUBLISHED["DeepSeek-V3"], rope_interleave: false });
    expect(halves.rope).toMatchObject({ pairing: "half" });
  });
  test.each(Object.entries(PUBLISHED))("%s gives options that the layer takes", (_, json) => {
    const made = attentionConfigFromHF(json);
    if (made.operation === "GroupedQueryAttention") {
      const config = resolveHeadConfig(made.options);
      using rotation = resolveRope(made.options, config.headDim);
      expect(rotation!.options.rotaryDim).toBeLessThanOrEqual(config.headDim);
    } else {
      using rotation = resolveLatentRope(made.options);
      expect(rotation!.options.rotaryDim).toBe(resolveLatentConfig(made.options).qkRopeHeadDim);
    }
  });
});
describe("spellings", () => {
  /** The fields of a rotation and of the dtype under their newer names. */
  function renewed({ rope_theta, rope_scaling, torch_dtype, ...rest }: JsonObject): JsonObject {
    const scaling = rope_scaling as JsonObject | null | undefined;
    const parameters = { rope_type: scaling?.["type"] ?? "default", ...scaling, rope_theta };
    return { ...rest, rope_parameters: parameters, dtype: torch_dtype };
  }
  test.each([
    "Llama-3.1-8B",
    "Mistral-7B-v0.1",
    "Qwen3-0.6B",
    "gemma-2-27b",
    "gpt-oss-20b",
    "DeepSeek-V3",
  ] as const)("%s with rope_parameters and dtype is the same model", (name) => {
    expect(attentionConfigFromHF(renewed(PUBLISHED[name]), 1)).toEqual(
      attentionConfigFromHF(PUBLISHED[name], 1),
    );
  });
  test("rope_parameters may differ by the type of a layer", () => {
    const {
      rope_theta: _,
      rope_local_base_freq: __,
      rope_scaling: ___,
      ...rest
    } = PUBLISHED["gemma-3-1b-it"];
    const json = {
      ...rest,
      rope_parameters: {
        full_attention: { rope_type: "linear", factor: 8, rope_theta: 1e6 },
        sliding_attention: { rope_type: "default", rope_theta: 20000 },
      },
    };
    expect(grouped(json, 5).rope).toEqual(rope(1e6, 256, { type: "linear", factor: 8 }) as never);
    expect(grouped(json, 0).rope).toEqual(rope(20000, 256) as never);
    const scaled = { rope_type: "linear", factor: 2, rope_theta: 20000 };
    const both = { ...json, rope_parameters: { ...json.rope_parameters, sliding_attention: scaled } };
    expect(grouped(both, 0).rope).toEqual(rope(20000, 256, { type: "linear", factor: 2 }) as never);
    const half = { ...json, rope_parameters: { full_attention: json.rope_parameters.full_attention } };
    expect(() => grouped(half, 0)).toThrow("config.rope_parameters.sliding_attention must be given");
  });
  test("layer_types stands above the family's pattern", () => {
    const json = { ...PUBLISHED["gemma-3-1b-it"], layer_types: ["full_attention", "sliding_attention"] };
    expect(grouped(json, 0)).toMatchObject({ window: undefined, rope: rope(1e6, 256) });
    expect(grouped(json, 1).window).toEqual({ left: 511 });
  });
  test("a dtype may carry its library's name", () => {
    const json = { ...PUBLISHED["Llama-3.1-8B"], torch_dtype: "torch.float16" };
    expect(attentionConfigFromHF(json).dtype).toBe("float16");
  });
  test("dynamic scaling measures against max_position_embeddings, YaRN derives an absent factor", () => {
    const json = { ...PUBLISHED["Mistral-7B-v0.1"], rope_scaling: { type: "dynamic", factor: 2 } };
    expect(grouped(json).rope).toMatchObject({
      scaling: { type: "dynamic", factor: 2, originalMaxPositions: 32768 },
    });
    const yarn = { rope_type: "yarn", original_max_position_embeddings: 8192, attention_factor: 1.5 };
    expect(grouped({ ...json, rope_scaling: yarn }).rope).toMatchObject({
      scaling: { type: "yarn", factor: 4, originalMaxPositions: 8192, attentionFactor: 1.5 },
    });
  });
  test("an absent number of key heads is that of query heads, where the family has no other default", () => {
    const { num_key_value_heads: _, ...rest } = PUBLISHED["Llama-3.1-8B"];
    expect(grouped(rest).numKvHeads).toBe(32);
    expect(grouped({ ...rest, model_type: "mistral" }).numKvHeads).toBe(8);
    expect(grouped({ ...rest, model_type: "mistral", num_key_value_heads: null }).numKvHeads).toBe(32);
  });
});
describe("errors name the field", () => {
  const llama = PUBLISHED["Llama-3.1-8B"];
  const scaled = (fields: object): JsonObject => ({
    ...llama,
    rope_scaling: { ...llama.rope_scaling, ...fields },
  });
  const REFUSED: readonly (readonly [JsonObject, string])[] = [
    [{ ...llama, model_type: "mamba" }, 'config.model_type "mamba"'],
    [{ ...llama, model_type: "__proto__" }, 'config.model_type "__proto__"'],
    [scaled({ rope_type: "spiral" }), 'config.rope_scaling.rope_type "spiral"'],
    [scaled({ mrope_section: [1, 2] }), "config.rope_scaling.mrope_section [1,2]"],
    [{ ...llama, layer_types: ["linear_attention"] }, "config.layer_types"],
    [{ ...llama, torch_dtype: "float8_e4m3fn" }, 'config.torch_dtype "float8_e4m3fn"'],
    [
      { ...PUBLISHED["gemma-3-1b-it"], use_bidirectional_attention: true },
      "config.use_bidirectional_attention",
    ],
    [{ ...PUBLISHED["DeepSeek-V3"], num_key_value_heads: 8 }, "config.num_key_value_heads 8"],
    [{ ...PUBLISHED["DeepSeek-V3"], layer_types: ["sliding_attention"] }, "config.layer_types"],
  ];
  test.each(REFUSED)("%#: not done here", (json, words) => {
    expect(() => attentionConfigFromHF(json)).toThrow(UnsupportedError);
    expect(() => attentionConfigFromHF(json)).toThrow(words);
  });
  const MALFORMED: readonly (readonly [JsonObject, string])[] = [
    [{}, "config.model_type must be given; got null"],
    [{ model_type: 3 }, "config.model_type must be a string; got 3"],
    [{ model_type: "gemma3" }, "config.text_config must be given"],
    [{ ...llama, hidden_size: null }, "config.hidden_size must be given; got null"],
    [{ ...llama, hidden_size: "4096" }, 'config.hidden_size must be a finite number; got "4096"'],
    [
      { ...llama, num_attention_heads: 0 },
      "config.num_attention_heads must be a whole number of at least 1; got 0",
    ],
    [{ ...llama, head_dim: 64.5 }, "config.head_dim must be a whole number"],
    [{ ...llama, attention_bias: "yes" }, 'config.attention_bias must be true or false; got "yes"'],
    [{ ...llama, rope_scaling: 8 }, "config.rope_scaling must be an object; got 8"],
    [scaled({ factor: null }), "config.rope_scaling.factor must be given"],
    [{ ...llama, layer_types: "full" }, "config.layer_types must be a list"],
    [{ ...llama, layer_types: [] }, "config.layer_types must have a type for layer 0"],
    [{ ...llama, layer_types: ["sliding_attention"] }, "config.sliding_window must be given"],
    [
      { ...PUBLISHED["Qwen2.5-7B"], layer_types: ["sliding_attention"] },
      "config.use_sliding_window must be true",
    ],
    [
      { ...llama, rope_scaling: { type: "longrope", short_factor: [1, "x"], long_factor: [1] } },
      "config.rope_scaling.short_factor must be a list of numbers",
    ],
  ];
  test.each(MALFORMED)("%#: makes no sense", (json, words) => {
    expect(() => attentionConfigFromHF(json)).toThrow(FormatError);
    expect(() => attentionConfigFromHF(json)).toThrow(words);
  });
  test("details hold the field and its value", () => {
    const failed = ((): unknown => {
      try {
        return attentionConfigFromHF(scaled({ rope_type: "spiral" }));
      } catch (error) {
        return error;
      }
    })();
    expect(failed).toMatchObject({
      code: "HEED_UNSUPPORTED",
      details: { field: "config.rope_scaling.rope_type", value: "spiral" },
    });
  });
  test.each([32, -1, 0.5, NaN])("layer %p is not one of 32", (layer) => {
    expect(() => attentionConfigFromHF(llama, layer)).toThrow(ArgumentError);
  });
  test("whatever a field holds, the answer is options or an error of ours", () => {
    const models = Object.values(PUBLISHED) as JsonObject[];
    fc.assert(
      fc.property(fc.constantFrom(...models), fc.nat(100), fc.jsonValue(), (json, which, value) => {
        const names = [...Object.keys(json), "rope_parameters", "layer_types", "head_dim", "dtype"];
        const changed = { ...json, [names[which % names.length]!]: value };
        try {
          attentionConfigFromHF(changed);
        } catch (error) {
          expect(error).toBeInstanceOf(HeedError);
        }
      }),
      { numRuns: 500 },
    );
  });
});
