import { describe, expect, test } from "bun:test";
import {
  assertClose,
  attentionOracle,
  broadcastMask,
  conformanceTolerance,
  findVectors,
  loadOnnxVectors,
} from "@heed/testkit";
import type { AttentionOracleOptions, FloatDType, OnnxCase, OracleMask, VectorSet } from "@heed/testkit";
import { meaningOf } from "../onnx/attention-meaning.ts";
import type { OnnxAttention } from "../onnx/attention-meaning.ts";

const slot = (...shape: number[]) => ({ tensor: "t", dtype: "float32", shape });
const attentionCase = (part: Partial<OnnxCase>): OnnxCase => ({
  name: "case",
  op: "Attention",
  attributes: {},
  inputs: { Q: slot(2, 4, 3, 8), K: slot(2, 2, 5, 8), V: slot(2, 2, 5, 6) },
  outputs: { Y: slot(2, 4, 3, 6) },
  slots: { inputs: [], outputs: [] },
  ...part,
});

describe("the meaning of an ONNX Attention case", () => {
  test("4-D inputs are [B, H, S, D] and the defaults are plain attention from the top left", () => {
    expect(meaningOf(attentionCase({}))).toEqual({
      B: 2,
      S: 3,
      Sk: 5,
      Hq: 4,
      Hkv: 2,
      D: 8,
      Dv: 6,
      isFlat: false,
      scale: undefined,
      softcap: undefined,
      isCausal: false,
      window: undefined,
      queryOffset: 0,
      maskPadding: 0,
      scores: undefined,
      softmaxDType: undefined,
    });
  });

  test("3-D inputs are split by the head attributes", () => {
    const inputs = { Q: slot(2, 3, 32), K: slot(2, 5, 16), V: slot(2, 5, 12) };
    const attributes = { q_num_heads: 4, kv_num_heads: 2 };
    expect(meaningOf(attentionCase({ inputs, attributes }))).toMatchObject({
      Hq: 4,
      Hkv: 2,
      D: 8,
      Dv: 6,
      isFlat: true,
    });
    expect(() => meaningOf(attentionCase({ inputs }))).toThrow("an unstated number of heads");
    expect(() =>
      meaningOf(attentionCase({ inputs, attributes: { q_num_heads: 5, kv_num_heads: 2 } })),
    ).toThrow("5 heads");
  });

  test("a past shifts the queries by its length; valid lengths align them to the end", () => {
    const { inputs } = attentionCase({});
    const past = { ...inputs, past_key: slot(2, 2, 7, 8), past_value: slot(2, 2, 7, 6) };
    expect(meaningOf(attentionCase({ inputs: past }))).toMatchObject({ Sk: 12, queryOffset: 7 });
    const ragged = { ...inputs, nonpad_kv_seqlen: slot(2) };
    expect(() => meaningOf(attentionCase({ inputs: { ...past, ...ragged } }))).toThrow(
      "nonpad_kv_seqlen and a past exclude each other",
    );
    const { past_value: _value, ...keysAlone } = past;
    expect(() => meaningOf(attentionCase({ inputs: keysAlone }))).toThrow("must be given together");
    expect(meaningOf(attentionCase({ inputs: ragged }))).toMatchObject({ Sk: 5, queryOffset: "end" });
  });

  test("a window side of -1 is open, and of 0 is not", () => {
    const windowOf = (left: number, right: number) =>
      meaningOf(attentionCase({ attributes: { left_window_size: left, right_window_size: right } })).window;
    expect(windowOf(-1, -1)).toBeUndefined();
    expect(windowOf(2, -1)).toEqual({ left: 2 });
    expect(windowOf(0, -1)).toEqual({ left: 0 });
    expect(windowOf(-1, 0)).toEqual({ right: 0 });
    expect(() => windowOf(-2, 0)).toThrow("a window side must be -1 or more; got -2, 0");
  });

  test("a softcap of 0 or less is none", () => {
    const softcapOf = (softcap: number) => meaningOf(attentionCase({ attributes: { softcap } })).softcap;
    expect([2, 0, -1].map(softcapOf)).toEqual([2, undefined, undefined]);
  });

  test("a mask that covers fewer keys is padded, one of width 1 as well", () => {
    const withMask = (...shape: number[]) =>
      meaningOf(attentionCase({ inputs: { ...attentionCase({}).inputs, attn_mask: slot(...shape) } }));
    expect(withMask(3, 4).maskPadding).toBe(1);
    expect(withMask(3, 1).maskPadding).toBe(4);
    expect(withMask(3, 5).maskPadding).toBe(0);
    expect(() => withMask(3, 6)).toThrow("attn_mask covers 6 keys of 5");
  });

  test("scores are wanted only when the output has a name", () => {
    const attributes = { qk_matmul_output_mode: 2 };
    expect(meaningOf(attentionCase({ attributes })).scores).toBeUndefined();
    const outputs = { Y: slot(1), qk_matmul_output: slot(1) };
    expect(meaningOf(attentionCase({ attributes, outputs })).scores).toBe("masked");
    expect(meaningOf(attentionCase({ outputs })).scores).toBe("raw");
    expect(() => meaningOf(attentionCase({ outputs, attributes: { qk_matmul_output_mode: 4 } }))).toThrow(
      "0 to 3",
    );
  });

  test("softmax_precision names a float type", () => {
    expect(meaningOf(attentionCase({ attributes: { softmax_precision: 11 } })).softmaxDType).toBe("float64");
    expect(() => meaningOf(attentionCase({ attributes: { softmax_precision: 7 } }))).toThrow(
      "not a float type",
    );
  });

  test("attributes of another kind and missing inputs are refused in words", () => {
    expect(() => meaningOf(attentionCase({ attributes: { scale: "big" } }))).toThrow(
      'attribute scale must be a number; got "big"',
    );
    expect(() => meaningOf(attentionCase({ inputs: {} }))).toThrow("case has no input Q");
  });
});

/** Swaps the middle axes of a row-major [a, b, c, d]. */
function swapMiddle(x: ArrayLike<number>, a: number, b: number, c: number, d: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let n = 0; n < x.length; n++) {
    const [l, k, j, i] = [
      n % d,
      Math.floor(n / d) % c,
      Math.floor(n / (d * c)) % b,
      Math.floor(n / (d * c * b)),
    ];
    y[((i * c + k) * b + j) * d + l] = x[n]!;
  }
  expect(y.length).toBe(a * b * c * d);
  return y;
}

/** [B, Sk, H, width] from the given rows and, before them, the past [B, H, past, width]. */
function keysOrValues(
  set: VectorSet<OnnxCase>,
  one: OnnxCase,
  name: "K" | "V",
  m: OnnxAttention,
): Float64Array {
  const width = name === "K" ? m.D : m.Dv;
  const pastSlot = one.inputs[name === "K" ? "past_key" : "past_value"];
  const past = pastSlot?.shape[2] ?? 0;
  const given = set.values(one.inputs[name]!.tensor);
  const rows = m.isFlat ? given : swapMiddle(given, m.B, m.Hkv, m.Sk - past, width);
  if (pastSlot === undefined) return rows;
  const before = swapMiddle(set.values(pastSlot.tensor), m.B, m.Hkv, past, width);
  const token = m.Hkv * width;
  const all = new Float64Array(m.B * m.Sk * token);
  for (let b = 0; b < m.B; b++) {
    all.set(before.subarray(b * past * token, (b + 1) * past * token), b * m.Sk * token);
    all.set(
      rows.subarray(b * (m.Sk - past) * token, (b + 1) * (m.Sk - past) * token),
      (b * m.Sk + past) * token,
    );
  }
  return all;
}

function paddedMask(set: VectorSet<OnnxCase>, one: OnnxCase, m: OnnxAttention): OracleMask | undefined {
  const found = one.inputs.attn_mask;
  if (found === undefined) return undefined;
  const kind = found.dtype === "bool" ? "boolean" : "additive";
  const data = set.values(found.tensor);
  const width = found.shape.at(-1)!;
  const padded = new Float64Array((data.length / width) * (width + m.maskPadding)).fill(
    kind === "boolean" ? 0 : -Infinity,
  );
  for (let row = 0; row < data.length / width; row++) {
    padded.set(data.subarray(row * width, (row + 1) * width), row * (width + m.maskPadding));
  }
  return broadcastMask(kind, padded, [...found.shape.slice(0, -1), width + m.maskPadding], m);
}

function checkCase(set: VectorSet<OnnxCase>, one: OnnxCase): void {
  const m = meaningOf(one);
  const given = set.values(one.inputs.Q!.tensor);
  const q = m.isFlat ? given : swapMiddle(given, m.B, m.Hq, m.S, m.D);
  const lengths = one.inputs.nonpad_kv_seqlen;
  const options: AttentionOracleOptions = {
    dims: m,
    scale: m.scale,
    softcap: m.softcap,
    isCausal: m.isCausal,
    window: m.window,
    queryOffset: m.queryOffset === "end" ? undefined : m.queryOffset,
    kvLengths: lengths && set.values(lengths.tensor),
    mask: paddedMask(set, one, m),
  };
  const result = attentionOracle(q, keysOrValues(set, one, "K", m), keysOrValues(set, one, "V", m), {
    ...options,
    scores: m.scores,
  });
  const rel = conformanceTolerance(one.outputs.Y!.dtype as FloatDType, "forward");
  const Y = set.values(one.outputs.Y!.tensor);
  assertClose(result.out, m.isFlat ? Y : swapMiddle(Y, m.B, m.Hq, m.S, m.Dv), { rel, name: "Y" });
  const scores = one.outputs.qk_matmul_output;
  if (scores)
    assertClose(result.scores!, set.values(scores.tensor), {
      rel,
      name: "qk_matmul_output",
      shape: scores.shape,
    });
}

const folder = findVectors(import.meta.dir);
if (folder === undefined) {
  test.skip("the meaning against the vectors: no shared/conformance beside this checkout", () => {});
} else {
  describe("the float64 oracle, asked by the meaning, gives the expected outputs", () => {
    const set = loadOnnxVectors(folder, "onnx/attention");
    for (const one of set.cases) test(one.name, () => checkCase(set, one));
  });
}
