import {
  attention,
  type AttentionOptions,
  attentionScores,
  attentionVjp,
  attentionWithLse,
  type FusedMode,
  getEngine,
  ones,
  randn,
  scope,
  type Shape,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import {
  assertClose,
  attentionBackwardOracle,
  attentionOracle,
  broadcastMask,
  createRng,
  floatDTypes,
  roundArray,
  sumToMaskShape,
  toleranceFor,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { engines } from "../../engines.ts";

const subjects = engines.flatMap((name) => {
  const modes: FusedMode[] = getEngine(name).fused.attention === undefined ? ["off"] : ["off", "require"];
  return modes.map((fused) => ({ name, fused }));
});
const list = (t: Tensor): number[] => [...toFloat64(t)];

describe.each(subjects)("attention on $name, fused: $fused", ({ name, fused }) => {
  const on = { engine: name, dtype: "float64" } as const;
  const heads = (rows: number[][]): Tensor<"float64"> => {
    const t = tensor(rows.flat(), [1, rows.length, 1, rows[0]!.length], on);
    return t;
  };
  test("known answers: two equal keys average their values, bidirectional and causal", () => {
    scope(() => {
      const q = heads([
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 2, 3, 4],
      ]);
      const k = heads([
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 5, 6, 7],
      ]);
      const v = heads([
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 8, 7, 6],
      ]);
      const both = list(attention(q, k, v, { fused }));
      assertClose(both.slice(0, 8), [5, 16 / 3, 17 / 3, 6, 5, 16 / 3, 17 / 3, 6], { rel: 1e-15 });
      const causal = list(attention(q, k, v, { isCausal: true, fused }));
      assertClose(causal.slice(0, 8), [1, 2, 3, 4, 3, 4, 5, 6], { rel: 1e-15 });
    });
  });
  test("a mask of every shape that broadcasts, bool and float, forward and backward", () => {
    const dims = { B: 2, S: 3, Sk: 4, Hq: 4, Hkv: 2, D: 4, Dv: 3 };
    const full = [dims.B, dims.Hq, dims.S, dims.Sk];
    const shapes = new Map<string, Shape>();
    for (let rank = 0; rank <= 4; rank++) {
      for (let bits = 0; bits < 2 ** rank; bits++) {
        const shape = full.slice(4 - rank).map((n, i) => ((bits >> i) & 1 ? n : 1));
        shapes.set(shape.join(), shape);
      }
    }
    expect(shapes.size).toBe(31);
    const rng = createRng(7);
    const [q, k, v] = [rng.normalArray(96), rng.normalArray(64), rng.normalArray(48)];
    const dOut = rng.normalArray(72);
    for (const shape of shapes.values()) {
      const size = shape.reduce((a, n) => a * n, 1);
      for (const kind of ["boolean", "additive"] as const) {
        const data = Float64Array.from({ length: size }, () => {
          const shown = rng.uniform() < 0.7;
          return kind === "boolean" ? +shown : shown ? rng.normal() : -Infinity;
        });
        const options = { dims, mask: broadcastMask(kind, data, shape, dims) };
        const forward = attentionOracle(q, k, v, options);
        const oracle = attentionBackwardOracle(q, k, v, dOut, options);
        scope(() => {
          const attnMask =
            kind === "boolean"
              ? tensor([...data], shape, { engine: name, dtype: "bool" })
              : tensor(data, shape, { ...on });
          const { output, backward } = attentionVjp(
            tensor(q, [2, 3, 4, 4], on),
            tensor(k, [2, 4, 2, 4], on),
            tensor(v, [2, 4, 2, 3], on),
            { attnMask, fused, attnMaskGradient: kind === "additive" },
          );
          const g = backward(tensor(dOut, [2, 3, 4, 3], on));
          const tag = `${kind} [${shape.join(", ")}]`;
          assertClose(list(output), forward.out, { abs: 1e-13, name: `${tag} out` });
          assertClose(list(g.q), oracle.dq, { abs: 1e-13, name: `${tag} dq` });
          assertClose(list(g.k), oracle.dk, { abs: 1e-13, name: `${tag} dk` });
          assertClose(list(g.v), oracle.dv, { abs: 1e-13, name: `${tag} dv` });
          if (kind === "boolean") return;
          expect(g.attnMask!.shape).toEqual(shape as number[]);
          assertClose(list(g.attnMask!), sumToMaskShape(oracle.dBias, shape, dims), {
            abs: 1e-12,
            name: `${tag} dMask`,
          });
        });
      }
    }
  });
  test("values that are not finite reach the rows that see them, as a sum would carry them, and no others", () => {
    scope(() => {
      const x = heads([
        [1, 0],
        [0, 1],
        [1, 1],
      ]);
      const v = heads([
        [1, 1, 1, 1],
        [Infinity, -Infinity, NaN, 2],
        [-Infinity, -Infinity, 3, 3],
      ]);
      const rows = list(attention(x, x, v, { isCausal: true, fused }));
      expect(rows.slice(0, 4)).toEqual([1, 1, 1, 1]);
      expect(rows.slice(4, 7)).toEqual([Infinity, -Infinity, NaN]);
      expect(rows.slice(8, 11)).toEqual([NaN, -Infinity, NaN]);
      expect([rows[7], rows[11]].every(Number.isFinite)).toBe(true);
    });
  });
  test("a mask of any float dtype serves queries of any other", () => {
    for (const dtype of floatDTypes) {
      for (const maskDtype of floatDTypes) {
        scope(() => {
          const rng = createRng(3);
          const q = roundArray(dtype, rng.normalArray(24));
          const bias = roundArray(maskDtype, rng.normalArray(9));
          bias[4] = -Infinity;
          const dims = { B: 1, S: 3, Sk: 3, Hq: 2, Hkv: 2, D: 4, Dv: 4 };
          const oracle = attentionOracle(q, q, q, {
            dims,
            mask: broadcastMask("additive", bias, [3, 3], dims),
          });
          const x = tensor([...q], [1, 3, 2, 4], { engine: name, dtype });
          const attnMask = tensor([...bias], [3, 3], { engine: name, dtype: maskDtype });
          const got = toFloat64(attention(x, x, x, { attnMask, fused }));
          const { storage, accumulation } = toleranceFor(dtype);
          assertClose(got, oracle.out, {
            abs: 3 * (storage + 32 * accumulation),
            name: `${dtype}, mask ${maskDtype}`,
          });
        });
      }
    }
  });
  test("a row that sees nothing is zero with lse -Infinity, or the sink, and has no gradient", () => {
    scope(() => {
      const q = randn([1, 2, 2, 4], { ...on, seed: 1 });
      const hide: AttentionOptions = { attnMask: zeros([1], { engine: name, dtype: "bool" }), fused };
      const bare = attentionWithLse(q, q, q, hide);
      expect(list(bare.output)).toEqual(Array(16).fill(0));
      expect(list(bare.lse)).toEqual(Array(4).fill(-Infinity));
      const sinks = tensor([0.5, -2], undefined, { ...on });
      const sunk = attentionVjp(q, q, q, { ...hide, sinks });
      expect(list(sunk.output)).toEqual(Array(16).fill(0));
      expect(list(sunk.lse)).toEqual([0.5, 0.5, -2, -2]);
      const g = sunk.backward(randn([1, 2, 2, 4], { ...on, seed: 2 }));
      for (const t of [g.q, g.k, g.v, g.sinks!]) expect(list(t).every((x) => x === 0)).toBe(true);
    });
  });
  test("no keys: zero output, lse -Infinity or the sink, empty or zero gradients", () => {
    scope(() => {
      const q = ones([2, 3, 4, 8], on);
      const none = ones([2, 0, 2, 8], on);
      const sinks = tensor([1, 2, 3, 4], undefined, on);
      const { output, lse, backward } = attentionVjp(q, none, none, { isCausal: true, sinks, fused });
      expect(list(output)).toEqual(Array(192).fill(0));
      expect(list(lse)).toEqual([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
      const g = backward(ones([2, 3, 4, 8], on));
      expect(list(g.q)).toEqual(Array(192).fill(0));
      expect(g.k.shape).toEqual([2, 0, 2, 8]);
      expect(list(g.sinks!)).toEqual([0, 0, 0, 0]);
      expect(list(attentionWithLse(q, none, none, { fused }).lse)).toEqual(Array(24).fill(-Infinity));
      const mask = zeros([3, 0], on);
      const masked = attentionVjp(q, none, none, { attnMask: mask, attnMaskGradient: true, fused });
      expect(masked.backward(q).attnMask!.shape).toEqual([3, 0]);
      expect(attentionScores(q, none, none).scores.shape).toEqual([2, 4, 3, 0]);
    });
  });
  test("no queries, no batch and no heads give empty results and zero gradients", () => {
    scope(() => {
      for (const [B, S, H] of [
        [2, 0, 2],
        [0, 3, 2],
        [1, 3, 0],
      ] as const) {
        const q = ones([B, S, H, 4], on);
        const k = ones([B, 5, H, 4], on);
        const v = ones([B, 5, H, 4], on);
        const { output, lse, backward } = attentionVjp(q, k, v, {
          isCausal: true,
          kvLengths: tensor(Array<number>(B).fill(4), undefined, { engine: name, dtype: "int32" }),
          alibiSlopes: ones([H], on),
          sinks: ones([H], on),
          fused,
        });
        expect(output.shape).toEqual([B, S, H, 4]);
        expect(lse.shape).toEqual([B, H, S]);
        const g = backward(ones([B, S, H, 4], on));
        expect(g.q.shape).toEqual([B, S, H, 4]);
        for (const t of [g.q, g.k, g.v, g.sinks!]) expect(list(t).every((x) => x === 0)).toBe(true);
      }
    });
  });
  test("offsets: the default is bottom right, 0 is top left, one for each sequence", () => {
    scope(() => {
      const q = zeros([2, 2, 1, 2], on);
      const k = zeros([2, 4, 1, 2], on);
      const v = tensor([1, 2, 4, 8, 1, 2, 4, 8], [2, 4, 1, 1], on);
      const run = (o: AttentionOptions): number[] =>
        list(attention(q, k, v, { isCausal: true, fused, ...o }));
      const offsets = tensor([0, 3], undefined, { engine: name, dtype: "int32" });
      const lengths = tensor([2, 3], undefined, { engine: name, dtype: "int32" });
      assertClose(run({}), [7 / 3, 15 / 4, 7 / 3, 15 / 4], { rel: 1e-15 });
      assertClose(run({ queryOffset: "end" }), [7 / 3, 15 / 4, 7 / 3, 15 / 4], { rel: 1e-15 });
      assertClose(run({ queryOffset: 0 }), [1, 1.5, 1, 1.5], { rel: 1e-15 });
      assertClose(run({ queryOffset: -1 }), [0, 1, 0, 1], { rel: 1e-15 });
      assertClose(run({ queryOffset: offsets }), [1, 1.5, 15 / 4, 15 / 4], { rel: 1e-15 });
      assertClose(run({ kvLengths: lengths }), [1, 1.5, 1.5, 7 / 3], { rel: 1e-15 });
      assertClose(run({ queryOffset: 2 ** 52, window: { left: 1 } }), [0, 0, 0, 0]);
      assertClose(run({ queryOffset: -(2 ** 52) }), [0, 0, 0, 0]);
    });
  });
  test("a window of any size up to the largest whole number, and an open one, see what they say", () => {
    scope(() => {
      const q = zeros([1, 4, 1, 2], on);
      const v = tensor([1, 2, 4, 8], [1, 4, 1, 1], on);
      const run = (left?: number, right?: number): number[] =>
        list(attention(q, q, v, { window: { left, right }, fused }));
      assertClose(run(0, 0), [1, 2, 4, 8], { rel: 1e-15 });
      assertClose(run(1, 0), [1, 1.5, 3, 6], { rel: 1e-15 });
      assertClose(run(undefined, 1), [1.5, 7 / 3, 15 / 4, 15 / 4], { rel: 1e-15 });
      assertClose(run(Infinity, Infinity), Array(4).fill(15 / 4), { rel: 1e-15 });
      assertClose(run(2 ** 53 - 1, 2 ** 53 - 1), Array(4).fill(15 / 4), { rel: 1e-15 });
      assertClose(run(2 ** 31, 2 ** 31), Array(4).fill(15 / 4), { rel: 1e-15 });
    });
  });
  test("sink tokens are seen behind the window, as causality, lengths and masks allow, and change nothing without its left side", () => {
    scope(() => {
      const q = zeros([1, 4, 1, 2], on);
      const v = tensor([1, 2, 4, 8], [1, 4, 1, 1], on);
      const run = (sinkTokens: number, o: AttentionOptions): number[] =>
        list(attention(q, q, v, { sinkTokens, fused: fused === "require" ? "auto" : fused, ...o }));
      const last = { window: { left: 0 }, isCausal: true } as const;
      assertClose(run(0, last), [1, 2, 4, 8], { rel: 1e-15 });
      assertClose(run(1, last), [1, 1.5, 2.5, 4.5], { rel: 1e-15 });
      assertClose(run(2, last), [1, 1.5, 7 / 3, 11 / 3], { rel: 1e-15 });
      assertClose(run(2 ** 53 - 1, last), [1, 1.5, 7 / 3, 15 / 4], { rel: 1e-15 });
      const one = tensor([1], undefined, { engine: name, dtype: "int32" });
      assertClose(run(2, { ...last, kvLengths: one, queryOffset: 0 }), [1, 1, 1, 1], { rel: 1e-15 });
      const attnMask = tensor([0, 1, 1, 1], [1, 4], { engine: name, dtype: "bool" });
      assertClose(run(2, { ...last, attnMask }), [0, 2, 3, 5], { rel: 1e-15 });
      assertClose(run(2, { isCausal: true }), run(0, { isCausal: true }));
      assertClose(run(2, { window: { right: 1 } }), run(0, { window: { right: 1 } }));
    });
  });
  test("scores as large as a float holds do not overflow, in float16 too", () => {
    scope(() => {
      const big = tensor([200, 200, 200, 200, -200, -200, -200, -200], [1, 2, 1, 4], {
        engine: name,
        dtype: "float16",
      });
      const v = tensor([1, 2], [1, 2, 1, 1], { engine: name, dtype: "float16" });
      expect(list(attention(big, big, v, { fused }))).toEqual([1, 2]);
      const huge = tensor([1e18, 1e18], [1, 2, 1, 1], { engine: name });
      expect(list(attention(huge, huge, tensor([1, 3], [1, 2, 1, 1], { engine: name }), { fused }))).toEqual([
        2, 2,
      ]);
    });
  });
  test("the two layouts give the same bits", () => {
    scope(() => {
      const q = randn([2, 5, 4, 8], { engine: name, seed: 1 });
      const k = randn([2, 7, 2, 8], { engine: name, seed: 2 });
      const heads = (x: Tensor<"float32">): Tensor<"float32"> => x.transpose(1, 2).contiguous();
      const plain = attention(q, k, k, { isCausal: true, fused });
      const other = attention(heads(q), heads(k), heads(k), { isCausal: true, layout: "bhsd", fused });
      expect(other.shape).toEqual([2, 4, 5, 8]);
      expect(list(other.transpose(1, 2))).toEqual(list(plain));
    });
  });
  test("keys shared by a broadcast batch or head are read, not copied first", () => {
    scope(() => {
      const q = randn([3, 4, 2, 8], { ...on, seed: 1 });
      const k = randn([1, 5, 1, 8], { ...on, seed: 2 });
      const wide = k.broadcastTo([3, 5, 2, 8]);
      assertClose(
        list(attention(q, wide, wide, { fused })),
        list(attention(q, wide.contiguous(), wide.contiguous(), { fused })),
        {
          rel: 1e-15,
        },
      );
    });
  });
});
