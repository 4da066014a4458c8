/**
 * Each fused operation on the native engine against its composed form: that the binding hands over every field. What the operations
 * mean is the conformance suite's subject.
 */
import {
  allocate,
  attentionVjp,
  attentionWithLse,
  cast,
  type DType,
  kvAppend,
  linear,
  type NormOfHeads,
  normRopeAppend,
  pagedAttentionWithLse,
  randn,
  rmsNorm,
  rmsNormBackward,
  rope,
  ropeBackward,
  scope,
  type Tensor,
  tensor,
  toFloat64,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { cpu } from "../../src/index.ts";
import { FLOATS, PRECISION } from "@heed/testkit/core/strided";

const engine = cpu();
type Mode = { readonly fused: "require" | "off" };
let seed = 0;
function random(dtype: DType, shape: readonly number[]): Tensor<"float32"> {
  using x = randn(shape, { engine, seed: seed++ });
  return cast(x, dtype) as Tensor as Tensor<"float32">; // any float: the operations are generic in it
}
const int32 = (values: readonly number[], shape?: readonly number[]): Tensor<"int32"> =>
  tensor(Int32Array.from(values), shape, { engine });

/** Runs `f` on the kernel and composed; their results agree to a few units of the largest value. */
function expectSame(dtype: DType, f: (mode: Mode) => readonly (Tensor | undefined)[]): void {
  scope(() => {
    const composed = f({ fused: "off" });
    f({ fused: "require" }).forEach((t, i) => {
      const expected = toFloat64(composed[i]!);
      const actual = toFloat64(t!);
      const largest = expected.reduce((a, x) => (Number.isFinite(x) ? Math.max(a, Math.abs(x)) : a), 0);
      const allowed = 16 * (largest + 1) * PRECISION[dtype].ulp;
      expect(t!.shape).toEqual(composed[i]!.shape);
      actual.forEach((x, j) => {
        if (!Object.is(x, expected[j]) && !(Math.abs(x - expected[j]!) <= allowed)) {
          expect(`result ${i}, element ${j}: ${x}`).toBe(`${expected[j]} within ${allowed}`);
        }
      });
    });
  });
}
describe("fused operations on the native engine", () => {
  test.each([...FLOATS])("linear of %s, with and without a bias", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 1;
      const x = random(dtype, [2, 3, 5]);
      const weight = random(dtype, [7, 5]);
      return [linear(x, weight, mode), linear(x, weight, { bias: random(dtype, [7]), ...mode })];
    });
  });
  test.each(["float16", "bfloat16"] as const)("linear of float32 with weights in %s", (dtype) => {
    expectSame("float32", (mode) => {
      seed = 2;
      return [
        linear(random("float32", [6, 33]), random(dtype, [9, 33]), { bias: random("float32", [9]), ...mode }),
      ];
    });
  });
  test.each([...FLOATS])("linear of %s from nothing is the bias", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 3;
      const empty = { x: allocate(engine, dtype, [2, 0]), weight: allocate(engine, dtype, [3, 0]) };
      return [linear(empty.x as Tensor<"float32">, empty.weight, { bias: random(dtype, [3]), ...mode })];
    });
  });
  test.each([...FLOATS])(
    "rope of %s and its backward pass, both pairings, partial, at given positions",
    (dtype) => {
      expectSame(dtype, (mode) => {
        seed = 4;
        const x = random(dtype, [2, 3, 4, 10]);
        const table = dtype === "float64" ? dtype : "float32";
        const cos = random(table, [9, 3]);
        const sin = random(table, [9, 3]);
        const positions = int32([4, 0, 8, 7, 1, 1], [2, 3]);
        return (["half", "interleaved"] as const).flatMap((pairing) => {
          const options = { pairing, positions, ...mode };
          return [rope(x, cos, sin, options), ropeBackward(x, cos, sin, options)];
        });
      });
    },
  );
  test.each([...FLOATS])("rmsNorm of %s and its backward pass", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 5;
      const x = random(dtype, [2, 3, 2, 19]);
      const weight = random("float32", [19]);
      const dOut = random(dtype, [2, 3, 2, 19]);
      return [false, true].flatMap((unitOffset) => {
        const options = { eps: 0.25, unitOffset, ...mode };
        const gradients = rmsNormBackward(x, weight, dOut, options);
        return [rmsNorm(x, weight, options), rmsNorm(x, undefined, mode), gradients.x, gradients.weight];
      });
    });
  });
  const B = 2;
  const S = 5;
  const Sk = 9;
  const Hq = 4;
  const Hkv = 2;
  const D = 6;
  const Dv = 3;
  const operands = (dtype: DType) => ({
    q: random(dtype, [B, S, Hq, D]),
    k: random(dtype, [B, Sk, Hkv, D]),
    v: random(dtype, [B, Sk, Hkv, Dv]),
  });
  const perHead = (dtype: DType): Tensor => random(dtype === "float64" ? dtype : "float32", [Hq]);
  const variants: Readonly<Record<string, (dtype: DType) => Parameters<typeof attentionVjp>[3]>> = {
    plain: () => ({}),
    "causal with a scale and a softcap": () => ({ isCausal: true, scale: 0.7, softcap: 1.5 }),
    "a two-sided window at an offset": () => ({ window: { left: 2, right: 1 }, queryOffset: 3 }),
    "an offset and a length for each sequence": () => ({
      isCausal: true,
      queryOffset: int32([1, 4]),
      kvLengths: int32([7, 9]),
    }),
    "lengths from the end, left open": () => ({ window: { right: 0 }, kvLengths: int32([5, 8]) }),
    "slopes and sinks": (dtype) => ({ alibiSlopes: perHead(dtype), sinks: perHead(dtype) }),
    dropout: () => ({ isCausal: true, dropout: { probability: 0.4, seed: 17 } }),
    "a float mask, broadcast over batch and queries": (dtype) => ({ attnMask: random(dtype, [Hq, 1, Sk]) }),
    "a bool mask": () => {
      const bits = Uint8Array.from({ length: B * S * Sk }, (_, i) => Number((i * 7) % 3 !== 0));
      return { attnMask: tensor(bits, [B, 1, S, Sk], { dtype: "bool", engine }) };
    },
  };
  const cases = Object.keys(variants).flatMap((name) => FLOATS.map((dtype) => [dtype, name] as const));
  test.each(cases)("attention of %s: %s", (dtype, name) => {
    expectSame(dtype, (mode) => {
      seed = 6;
      const { q, k, v } = operands(dtype);
      const { output, lse } = attentionWithLse(q, k, v, { ...variants[name]!(dtype), ...mode });
      return [output, lse];
    });
  });
  test.each(cases)("gradients of attention of %s: %s", (dtype, name) => {
    expectSame(dtype, (mode) => {
      seed = 7;
      const { q, k, v } = operands(dtype);
      const options = variants[name]!(dtype);
      const attnMaskGradient = options?.attnMask !== undefined && options.attnMask.dtype !== "bool";
      const vjp = attentionVjp(q, k, v, { ...options, attnMaskGradient, ...mode });
      const g = vjp.backward(random(dtype, [B, S, Hq, Dv]));
      return [g.q, g.k, g.v, g.attnMask, g.sinks].filter((t) => t !== undefined);
    });
  });
  test.each([...FLOATS])("attention of %s in [B, H, S, D] order", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 8;
      const { q, k, v } = operands(dtype);
      const flip = (t: Tensor<"float32">): Tensor<"float32"> => t.transpose(1, 2).contiguous();
      const { output, lse } = attentionWithLse(flip(q), flip(k), flip(v), {
        layout: "bhsd",
        isCausal: true,
        ...mode,
      });
      return [output, lse];
    });
  });
  const pageSize = 4;
  const lengths = [6, 1, 9];
  function pages(dtype: DType) {
    const table = {
      queryIndptr: int32([0, 2, 3, 6]),
      indptr: int32([0, 2, 3, 6]),
      indices: int32([5, 0, 3, 1, 6, 2]),
      lengths: int32(lengths),
      slots: int32([0, 0, 0, 0, 0, 0]),
      epoch: 0,
    };
    const kPages = random(dtype, [7, Hkv, pageSize, D]);
    return { kPages, vPages: random(dtype, [7, Hkv, pageSize, Dv]), table };
  }
  test.each([...FLOATS])("pagedAttention of %s", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 9;
      const q = random(dtype, [6, Hq, D]);
      const options = { window: { left: 4 }, softcap: 2, sinks: perHead(dtype), ...mode };
      const { output, lse } = pagedAttentionWithLse(q, pages(dtype), options);
      return [output, lse];
    });
  });
  const norms = (dtype: DType): Readonly<Record<string, NormOfHeads | undefined>> => ({
    none: undefined,
    "each head": { q: random(dtype, [D]), k: random("float32", [D]), eps: 0.25 },
    "all heads, unit offset": { q: random(dtype, [Hq, D]), k: random(dtype, [Hkv, D]), unitOffset: true },
    "keys alone": { k: random(dtype, [Hkv, D]) },
  });
  const appends = Object.keys(norms("float32")).flatMap((name) =>
    FLOATS.map((dtype) => [dtype, name] as const),
  );
  test.each(appends)("normRopeAppend of %s is its parts bit for bit, norm: %s", (dtype, name) => {
    for (const pairing of ["half", "interleaved"] as const) {
      const [fused, composed] = (["require", "off"] as const).map((mode) =>
        scope(() => {
          seed = 11;
          const { kPages, vPages } = pages(dtype);
          const table = dtype === "float64" ? dtype : "float32";
          const rows = random(dtype, [3, (Hq + Hkv) * D + Hkv * Dv]);
          const part = (from: number, heads: number, width: number): Tensor<"float32"> =>
            rows.slice(1, from, from + heads * width).reshape([3, heads, width]);
          const [q, k, v] = [part(0, Hq, D), part(Hq * D, Hkv, D), part((Hq + Hkv) * D, Hkv, Dv)] as const;
          const rope = {
            cos: random(table, [9, 2]),
            sin: random(table, [9, 2]),
            positions: int32([4, 0, 8]),
            pairing,
          };
          const target = { kPages, vPages, slots: int32([9, -1, 27]) };
          const out = normRopeAppend(q, k, v, target, { norm: norms(dtype)[name], rope, fused: mode });
          return [out, kPages, vPages].map((t) => [...toFloat64(t)]);
        }),
      );
      expect(fused).toEqual(composed!);
    }
  });
  test.each([...FLOATS])("kvAppend of %s", (dtype) => {
    expectSame(dtype, (mode) => {
      seed = 10;
      const { kPages, vPages } = pages(dtype);
      const slots = int32([9, -1, 27]);
      kvAppend(random(dtype, [3, Hkv, D]), random(dtype, [3, Hkv, Dv]), kPages, vPages, slots, mode);
      return [kPages, vPages];
    });
  });
});
