import { describe, expect, test } from "bun:test";
import { isLatent, latentOptions } from "../models/latent-options.ts";
import { groupedQueryOptions } from "../models/options.ts";
import { Unsupported } from "../run.ts";

const llama = {
  hidden_size: 64,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  head_dim: 8,
  rope_theta: 500000,
  rope_interleaved: true,
  max_position_embeddings: 12,
};
const reasonOf = (config: Readonly<Record<string, unknown>>): string => {
  const found = groupedQueryOptions(config);
  return found instanceof Unsupported ? found.reason : "supported";
};

describe("the layer that a configuration asks for", () => {
  test("heads, sizes and the rotation", () => {
    expect(groupedQueryOptions(llama)).toMatchObject({
      hiddenSize: 64,
      numHeads: 8,
      numKvHeads: 2,
      headDim: 8,
      bias: false,
      rope: { base: 500000, pairing: "interleaved", scaling: { type: "none" } },
      sinks: false,
    });
    expect(groupedQueryOptions({ ...llama, rope_interleaved: false })).toMatchObject({
      rope: { pairing: "half" },
    });
  });

  test("a sliding window counts the query itself", () => {
    expect(groupedQueryOptions({ ...llama, sliding_window: 5 })).toMatchObject({ window: { left: 4 } });
  });

  test("a fraction of query_pre_attn_scalar, softcap, norm, biases and sinks", () => {
    const gemma = {
      ...llama,
      query_pre_attn_scalar: 25,
      attn_logit_softcapping: 50,
      qk_norm: true,
      rms_norm_eps: 1e-6,
      rms_norm_unit_offset: true,
    };
    expect(groupedQueryOptions(gemma)).toMatchObject({
      scale: 0.2,
      softcap: 50,
      qkNorm: { eps: 1e-6, unitOffset: true },
    });
    expect(groupedQueryOptions({ ...llama, attention_bias: true, attention_sinks: true })).toMatchObject({
      bias: true,
      sinks: true,
    });
  });

  test("the scalings that the rotation knows", () => {
    const scaled = (rope_scaling: unknown) => groupedQueryOptions({ ...llama, rope_scaling });
    expect(scaled({ rope_type: "linear", factor: 2 })).toMatchObject({
      rope: { scaling: { type: "linear", factor: 2 } },
    });
    const rule = {
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    expect(scaled({ rope_type: "llama3", ...rule })).toMatchObject({
      rope: {
        scaling: {
          type: "llama3",
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxPositions: 8192,
        },
      },
    });
    expect(() => scaled({ rope_type: "linear" })).toThrow("config has no factor");
    const scaling = (rope_scaling: unknown) => scaled(rope_scaling) as { rope: { scaling: object } };
    expect(scaling({ type: "dynamic", factor: 2 }).rope.scaling).toEqual({
      type: "dynamic",
      factor: 2,
      originalMaxPositions: 12, // max_position_embeddings
    });
    const yarn = { factor: 32, original_max_position_embeddings: 4096 };
    expect(scaling({ rope_type: "yarn", ...yarn }).rope.scaling).toEqual({
      type: "yarn",
      factor: 32,
      originalMaxPositions: 4096,
    });
    const all = { beta_fast: 16, beta_slow: 2, truncate: false, mscale: 1, mscale_all_dim: 0.5 };
    expect(scaling({ rope_type: "yarn", ...yarn, ...all, attention_factor: 1.5 }).rope.scaling).toEqual({
      type: "yarn",
      factor: 32,
      originalMaxPositions: 4096,
      betaFast: 16,
      betaSlow: 2,
      truncate: false,
      mscale: 1,
      mscaleAllDim: 0.5,
      attentionFactor: 1.5,
    });
    const lists = { short_factor: [1, 1, 2, 2], long_factor: [1, 2, 3, 4] };
    const longrope = { rope_type: "longrope", ...lists, original_max_position_embeddings: 4 };
    expect(scaling(longrope).rope.scaling).toEqual({
      type: "longrope",
      shortFactor: [1, 1, 2, 2],
      longFactor: [1, 2, 3, 4],
      originalMaxPositions: 4,
      factor: 3, // max_position_embeddings over the original
    });
    expect(scaling({ ...longrope, factor: 2 }).rope.scaling).toMatchObject({ factor: 2 });
    expect(() => scaled({ ...longrope, short_factor: 1 })).toThrow("config.short_factor must be a list");
    expect(() => scaled({ rope_type: "yarn", ...yarn, truncate: 1 })).toThrow("config.truncate must be true");
  });

  test("another scaling and a field that nobody knows are unsupported, by name", () => {
    expect(reasonOf({ ...llama, rope_scaling: { rope_type: "odd" } })).toBe('no rotation is scaled as "odd"');
    expect(reasonOf({ ...llama, attention_chunk_size: 8 })).toBe("no layer knows attention_chunk_size");
    expect(reasonOf({ ...llama, attention_chunk_size: null, tied: false })).toBe("supported");
  });

  test("fields that are missing or of another kind are refused in words", () => {
    const { hidden_size: _, ...rest } = llama;
    expect(() => groupedQueryOptions(rest)).toThrow("config has no hidden_size");
    expect(() => groupedQueryOptions({ ...llama, head_dim: "8" })).toThrow(
      'config.head_dim must be a number; got "8"',
    );
  });
});

describe("the latent layer that a configuration asks for", () => {
  const deepseek = {
    hidden_size: 64,
    num_attention_heads: 4,
    q_lora_rank: null,
    kv_lora_rank: 24,
    qk_nope_head_dim: 16,
    qk_rope_head_dim: 8,
    v_head_dim: 20,
    rope_theta: 10000,
    rope_interleaved: true,
    rope_scaling: null,
    rms_norm_eps: 1e-6,
  };

  test("ranks, parts of heads, norm and rotation", () => {
    expect(isLatent(deepseek)).toBe(true);
    expect(isLatent(llama)).toBe(false);
    expect(latentOptions(deepseek)).toEqual({
      hiddenSize: 64,
      numHeads: 4,
      qLoraRank: undefined,
      kvLoraRank: 24,
      qkNopeHeadDim: 16,
      qkRopeHeadDim: 8,
      vHeadDim: 20,
      bias: false,
      rope: { base: 10000, pairing: "interleaved", scaling: { type: "none" } },
      normEps: 1e-6,
    });
    const other = { ...deepseek, q_lora_rank: 32, attention_bias: true, rope_interleaved: false };
    expect(latentOptions(other)).toMatchObject({ qLoraRank: 32, bias: true, rope: { pairing: "half" } });
  });

  test("fields that nobody knows, are missing or of another kind are named", () => {
    const found = latentOptions({ ...deepseek, sliding_window: 8 });
    expect(found instanceof Unsupported && found.reason).toBe("no layer knows sliding_window");
    const { v_head_dim: _, ...rest } = deepseek;
    expect(() => latentOptions(rest)).toThrow("config has no v_head_dim");
    expect(() => latentOptions({ ...deepseek, kv_lora_rank: "24" })).toThrow("kv_lora_rank must be a number");
  });
});
