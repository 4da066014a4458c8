import {
  attention,
  type AttentionOptions,
  attentionScores,
  attentionVjp,
  attentionWithLse,
  type Dropout,
  type FusedMode,
  getEngine,
  randn,
  recordTape,
  scope,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { assertClose, attentionOracle, createRng, keepFactors } from "@heed/testkit";
import { availableIsas, isa, selectIsa, setThreads } from "@heed/engine-cpu";
import { describe, expect, test } from "bun:test";
import { philox } from "../../../src/fused/attention/dropout.ts";
import { engines } from "../../engines.ts";

const subjects = engines.flatMap((name) => {
  const modes: FusedMode[] = getEngine(name).fused.attention === undefined ? ["off"] : ["off", "require"];
  return modes.map((fused) => ({ name, fused }));
});
const list = (t: Tensor): number[] => [...toFloat64(t)];
const HIGH = 2 ** 53 - 1;

/** Which weights attention keeps [B, Hq, S, Sk]: equal scores, and values that are the rows of a unit matrix. */
function kept(
  shape: { readonly B?: number; readonly H?: number; readonly S: number; readonly Sk: number },
  dropout: Dropout,
  options: AttentionOptions & { readonly engine?: string; readonly dtype?: "float32" | "float64" },
): number[] {
  const { B = 1, H = 1, S, Sk } = shape;
  const { engine = "portable", dtype = "float32", ...rest } = options;
  return scope(() => {
    const on = { engine, dtype } as const;
    const unit = tensor(
      Array.from({ length: Sk * Sk }, (_, n) => +(n % (Sk + 1) === 0)),
      [1, Sk, 1, Sk],
      on,
    );
    const out = attention(
      zeros([B, S, H, 4], on),
      zeros([B, Sk, H, 4], on),
      unit.broadcastTo([B, Sk, H, Sk]),
      {
        ...rest,
        dropout,
      },
    );
    return list(out.transpose(1, 2)).map((x) => +(x !== 0));
  });
}
function expected(
  shape: { readonly B?: number; readonly H?: number; readonly S: number; readonly Sk: number },
  dropout: Dropout,
): number[] {
  const { B = 1, H = 1, S, Sk } = shape;
  return Array.from({ length: B * H * S }, (_, row) => {
    const at = [Math.floor(row / (H * S)), Math.floor(row / S) % H, row % S] as const;
    return [...keepFactors(dropout, at, Sk)].map((x) => +(x !== 0));
  }).flat();
}

test("Philox4x32-10 gives the known answers of Random123", () => {
  const words = new Uint32Array(4);
  const hex = (): string => [...words].map((x) => x.toString(16).padStart(8, "0")).join(" ");
  philox([0, 0, 0, 0], [0, 0], words);
  expect(hex()).toBe("6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  const ones = 0xffffffff;
  philox([ones, ones, ones, ones], [ones, ones], words);
  expect(hex()).toBe("408f276d 41c83b0e a20bc7c6 6d5451fd");
  philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], words);
  expect(hex()).toBe("d16cfe09 94fdcceb 5001e420 24126ea1");
});

describe.each(subjects)("dropout on $name, fused: $fused", ({ name, fused }) => {
  const on = { engine: name, fused } as const;
  test("which weights are kept is the documented function of seed, batch, head, query and key", () => {
    const long = { B: 2, H: 3, S: 9, Sk: 150 }; // more rows and keys than a tile
    for (const seed of [0, 1, 2 ** 32, HIGH]) {
      const dropout = { probability: 0.4, seed };
      expect(kept(long, dropout, on)).toEqual(expected(long, dropout));
      expect(kept(long, dropout, { ...on, dtype: "float64" })).toEqual(expected(long, dropout));
    }
  });
  test("few and many queries, a window and causality leave the choice as it is", () => {
    const dropout = { probability: 0.5, seed: 11 };
    for (const [S, Sk] of [
      [1, 1],
      [1, 300],
      [5, 67],
      [200, 70],
    ] as const) {
      expect(kept({ S, Sk }, dropout, on)).toEqual(expected({ S, Sk }, dropout));
    }
    const all = expected({ S: 90, Sk: 131 }, dropout);
    const seen = all.map((x, n) => {
      const [i, j] = [Math.floor(n / 131), n % 131];
      return j <= i + 41 && j >= i + 41 - 13 ? x : 0;
    });
    expect(kept({ S: 90, Sk: 131 }, dropout, { ...on, isCausal: true, window: { left: 13 } })).toEqual(seen);
  });
  test("weights that are kept are divided by 1 - probability; lse is that without dropout", () => {
    scope(() => {
      const rng = createRng(4);
      const dims = { B: 1, S: 4, Sk: 6, Hq: 2, Hkv: 1, D: 3, Dv: 5 };
      const [q, k, v] = [rng.normalArray(24), rng.normalArray(18), rng.normalArray(30)];
      const place = (data: Float64Array, shape: number[]): Tensor<"float64"> =>
        tensor(data, shape, { engine: name, dtype: "float64" });
      const operands = [place(q, [1, 4, 2, 3]), place(k, [1, 6, 1, 3]), place(v, [1, 6, 1, 5])] as const;
      for (const probability of [1e-12, 0.1, 0.5, 0.999]) {
        const dropout = { probability, seed: 3 };
        const oracle = attentionOracle(q, k, v, { dims, dropout });
        const got = attentionWithLse(...operands, { fused, dropout });
        assertClose(list(got.output), oracle.out, { rel: 1e-13, abs: 1e-13 });
        expect(list(got.lse)).toEqual(list(attentionWithLse(...operands, { fused }).lse));
      }
    });
  });
  test("a probability of 0 changes no bit", () => {
    scope(() => {
      const q = randn([1, 40, 2, 16], { engine: name, seed: 1 });
      const run = (o: AttentionOptions): number[] =>
        list(attention(q, q, q, { isCausal: true, fused, ...o }));
      expect(run({ dropout: { probability: 0, seed: 1 } })).toEqual(run({}));
    });
  });
  test("the backward pass drops what the forward pass dropped", () => {
    scope(() => {
      // The output is linear in v: its gradient is the dropped weights themselves.
      const [S, Sk] = [7, 133];
      const q = zeros([1, S, 1, 4], { engine: name, dtype: "float64" });
      const k = zeros([1, Sk, 1, 4], { engine: name, dtype: "float64" });
      const v = zeros([1, Sk, 1, S], { engine: name, dtype: "float64" });
      const upstream = tensor(
        Array.from({ length: S * S }, (_, n) => +(n % (S + 1) === 0)),
        [1, S, 1, S],
        { engine: name, dtype: "float64" },
      );
      const dropout = { probability: 0.3, seed: 9 };
      const { backward } = attentionVjp(q, k, v, { dropout, fused });
      const weights = list(backward(upstream).v.reshape([Sk, S]).transpose());
      const want = expected({ S, Sk }, dropout).map((x) => x / 0.7 / Sk);
      assertClose(weights, want, { rel: 1e-14 });
    });
  });
  test("a value that is not finite changes no row that drops its weight", () => {
    scope(() => {
      for (const S of [3, 100]) {
        const dropout = { probability: 0.5, seed: 21 };
        const clean = randn([1, S, 1, 8], { engine: name, seed: 2, dtype: "float64" });
        const values = toFloat64(clean);
        values.fill(NaN, 8, 16);
        const v = tensor(values, [1, S, 1, 8], { engine: name, dtype: "float64" });
        const keep = expected({ S, Sk: S }, dropout);
        const before = list(attention(clean, clean, clean, { dropout, fused }));
        const after = list(attention(clean, clean, v, { dropout, fused }));
        for (let i = 0; i < S; i++) {
          const row = (x: number[]): number[] => x.slice(8 * i, 8 * i + 8);
          if (keep[i * S + 1] === 1) expect(row(after).every(Number.isNaN)).toBe(true);
          else assertClose(row(after), row(before), { abs: 1e-14 });
        }
      }
    });
  });
  test("a tape replays the weights dropped when it was recorded, on other inputs", () => {
    scope(() => {
      const engine = getEngine(name);
      const x = randn([1, 20, 2, 8], { engine, seed: 1 });
      const run = (): Tensor[] => {
        const { output, backward } = attentionVjp(x, x, x, { dropout: { probability: 0.3, seed: 4 }, fused });
        const g = backward(x);
        return [output, g.q, g.k, g.v];
      };
      const { outputs, tape } = recordTape(engine, run);
      x.data.set(randn([1, 20, 2, 8], { engine, seed: 9 }).data);
      tape.replay();
      expect(outputs.map(list)).toEqual(run().map(list));
      tape[Symbol.dispose]();
    });
  });
  test("scores stand before dropout, the output behind it", () => {
    scope(() => {
      const q = randn([1, 5, 2, 8], { engine: name, seed: 1 });
      const dropout = { probability: 0.5, seed: 1 };
      const dropped = attentionScores(q, q, q, { dropout });
      expect(list(dropped.scores)).toEqual(list(attentionScores(q, q, q).scores));
      expect(list(dropped.output)).toEqual(list(attention(q, q, q, { dropout, fused: "off" })));
    });
  });
});

describe("the choice of dropout", () => {
  const bits = (
    shape: { B?: number; H?: number; S: number; Sk: number },
    probability: number,
    seed: number,
  ) => expected(shape, { probability, seed });
  const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / x.length;
  test("drops its share of weights, for every probability", () => {
    for (const probability of [0.01, 0.1, 0.5, 0.9]) {
      const n = 4 * 64 * 64;
      const sigma = Math.sqrt((probability * (1 - probability)) / n);
      const share = 1 - mean(kept({ H: 4, S: 64, Sk: 64 }, { probability, seed: 77 }, {}));
      expect(Math.abs(share - probability)).toBeLessThan(4 * sigma);
    }
  });
  test("is independent between rows, heads, batches, neighbouring keys and seeds", () => {
    const shape = { B: 2, H: 2, S: 48, Sk: 48 };
    const one = bits(shape, 0.5, 5);
    const n = one.length;
    const correlation = (shift: number, other: readonly number[] = one): number =>
      mean(one.map((x, at) => (2 * x - 1) * (2 * other[(at + shift) % n]! - 1)));
    const shifts = { key: 1, "word of the next counter": 4, row: 48, head: 48 * 48, batch: 2 * 48 * 48 };
    for (const shift of Object.values(shifts))
      expect(Math.abs(correlation(shift))).toBeLessThan(4 / Math.sqrt(n));
    for (const seed of [6, 2 ** 32 + 5]) {
      expect(Math.abs(correlation(0, bits(shape, 0.5, seed)))).toBeLessThan(4 / Math.sqrt(n));
    }
  });
  test("a higher probability drops all that a lower one drops", () => {
    const [few, many] = [bits({ S: 20, Sk: 50 }, 0.2, 8), bits({ S: 20, Sk: 50 }, 0.6, 8)];
    expect(few.every((x, n) => x >= many[n]!)).toBe(true);
  });
});

describe.skipIf(!engines.includes("cpu"))("dropout in the kernels", () => {
  const shape = { B: 2, H: 2, S: 70, Sk: 150 };
  const dropout = { probability: 0.25, seed: 123_456_789_012 };
  test("every instruction set drops the same weights", () => {
    const inUse = isa();
    try {
      for (const level of availableIsas()) {
        selectIsa(level);
        expect(kept(shape, dropout, { engine: "cpu", fused: "require" })).toEqual(expected(shape, dropout));
      }
    } finally {
      selectIsa(inUse);
    }
  });
  test("any number of threads gives the same bits, forward and backward", () => {
    const run = (threads: number): number[][] =>
      scope(() => {
        setThreads(threads);
        const of = (seed: number): Tensor<"float32"> => randn([1, 301, 4, 40], { engine: "cpu", seed });
        const options = { isCausal: true, dropout, fused: "require" } as const;
        const { output, backward } = attentionVjp(of(1), of(2), of(3), options);
        const g = backward(of(4));
        return [output, g.q, g.k, g.v].map(list);
      });
    try {
      const [one, ...others] = [1, 2, 5].map(run);
      for (const other of others) expect(other).toEqual(one!);
    } finally {
      setThreads(0);
    }
  });
});
