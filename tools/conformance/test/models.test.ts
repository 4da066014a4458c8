import { describe, expect, test } from "bun:test";
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
