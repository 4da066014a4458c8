/** Gradients of attention on the emulated device where the suites' problems are too small: every kernel, several tiles, bits, NaN. */
import { attentionVjp } from "@heed/tensor";
import {
  type AttentionData,
  type AttentionDims,
  type AttentionProblem,
  isVisible,
  keepFactors,
} from "@heed/testkit";
import { checkAttentionBackward } from "@heed/testkit/conformance/attention-backward";
import { placeOperands, placeOptions, roundedData } from "@heed/testkit/conformance/attention-problem";
import { poisonedEngine, results, type Subject } from "@heed/testkit/conformance/subject";
import { describe, expect, test } from "bun:test";
import { ATTENTION_BACKWARD_ARGS } from "../../src/fused/attention/backward.ts";
import "../../src/index.ts";
import { loadNative } from "../../src/native.ts";
import { emulatedMissing, ENGINE } from "../support.ts";
import { emulatedWithin } from "./engines.ts";

const dims = (over: Partial<AttentionDims> & { readonly G?: number }): AttentionDims => {
  const { G = 3, ...rest } = over;
  const all = { B: 2, S: 50, Sk: 150, Hkv: 1, D: 64, Dv: over.D ?? 64, ...rest };
  return { ...all, Hq: all.Hkv * G };
};
/** Rows past a tile, keys past two, lengths that end within one, a window that leaves whole tiles out. */
const plain = (over: Parameters<typeof dims>[0]): AttentionProblem => ({
  dims: dims(over),
  isCausal: true,
  window: { left: 60 },
  kvLengths: [150, 97],
  alibi: false,
  sinks: true,
  seed: 3,
});
const rich = (over: Parameters<typeof dims>[0]): AttentionProblem => ({
  ...plain(over),
  softcap: 4,
  alibi: true,
  mask: { kind: "additive", shape: [1, dims(over).Hq, dims(over).S, dims(over).Sk] },
  dropout: { probability: 0.3, seed: 11 },
});
const subject = (dtype: Subject["dtype"]): Subject => ({
  engine: poisonedEngine(ENGINE),
  dtype,
  fused: "require",
});
type Gradients = Record<"dq" | "dk" | "dv", Float64Array>;

/** Gradients by the kernel for operands of a problem. */
function gradients(problem: AttentionProblem, data: AttentionData, s: Subject): Promise<Gradients> {
  return results(() => {
    const { q, k, v, dOut } = placeOperands(problem, data, s, {});
    const { backward } = attentionVjp(q, k, v, { ...placeOptions(problem, data, s), fused: s.fused });
    const g = backward(dOut);
    return { dq: g.q, dk: g.k, dv: g.v };
  });
}

describe.skipIf(emulatedMissing !== undefined)("attention backward on the emulated device", () => {
  test("has its argument block where the library has it", () => {
    const { bytes, fields } = ATTENTION_BACKWARD_ARGS;
    const ours = [bytes, ...Object.entries(fields).map(([field, at]) => `${field}=${at}`)].join(";");
    expect(ours).toBe(loadNative("emulated").layout("heed_cuda_attention_backward"));
  });
  const sizes = [
    { D: 64 },
    { D: 40, Dv: 24, G: 1, Hkv: 3 },
    { D: 90 },
    { D: 128 },
    { D: 192, Dv: 128, S: 25 },
    { D: 130, Dv: 100, S: 25 },
    { D: 256, S: 25 },
    { D: 136, Dv: 250, S: 25 },
    { D: 264, S: 10, Sk: 40 },
  ];
  describe.each(sizes.map((size) => [JSON.stringify(size), size] as const))("head sizes of %s", (_, size) => {
    test.each(["bfloat16", "float16"] as const)("agree with the oracle, %s", async (dtype) => {
      const lengths = size.Sk === undefined ? {} : { kvLengths: [40, 13] };
      await checkAttentionBackward(subject(dtype), { ...plain(size), ...lengths });
      await checkAttentionBackward(subject(dtype), { ...rich(size), ...lengths });
    });
  });
  test.each(["float32", "float64"] as const)(
    "agree with the oracle over several tiles, %s",
    async (dtype) => {
      for (const D of [5, 72])
        await checkAttentionBackward(subject(dtype), { ...rich({ D, S: 20, Sk: 40 }), kvLengths: [40, 13] });
    },
  );
  test("agree with the oracle where a block may have the least shared memory", async () => {
    const engine = emulatedWithin({ sharedPerBlock: 99 * 1024 });
    for (const dtype of ["bfloat16", "float16"] as const)
      await checkAttentionBackward({ engine, dtype, fused: "require" }, plain({ D: 128 }));
    const wide = { ...rich({ D: 256, S: 6, Sk: 20 }), kvLengths: [20, 13] };
    await checkAttentionBackward({ engine, dtype: "float64", fused: "require" }, wide);
  });
  test.each([
    ["bfloat16", 64],
    ["float16", 96],
    ["bfloat16", 128],
    ["float32", 8],
    ["float64", 8],
  ] as const)(
    "sequences without keys, and rows that see none, agree with the oracle, %s, %p",
    async (dtype, D) => {
      // Row i stands at kvLength - S + i: of 30 queries over 13 keys the first 17 see nothing.
      for (const [make, sinks] of [
        [plain, false],
        [plain, true],
        [rich, false],
      ] as const)
        await checkAttentionBackward(subject(dtype), {
          ...make({ D, S: 30, Sk: 40, G: 5 }),
          sinks,
          kvLengths: [0, 13],
        });
    },
  );
  test.each(["bfloat16", "float64"] as const)(
    "a sink of -Infinity has a gradient of 0, where rows see no key too, %s",
    async (dtype) => {
      const problem = { ...plain({ D: 8, S: 30, Sk: 40 }), kvLengths: [0, 13] };
      const s = subject(dtype);
      const data = roundedData(problem, s);
      const sinks = new Float64Array(problem.dims.Hq).fill(-Infinity);
      const { dSinks, dv } = await results(() => {
        const { q, k, v, dOut } = placeOperands(problem, data, s, {});
        const given = placeOptions(problem, { ...data, sinks }, s);
        const g = attentionVjp(q, k, v, { ...given, fused: "require" }).backward(dOut);
        return { dSinks: g.sinks, dv: g.v };
      });
      expect([...dSinks!].map(Math.abs)).toEqual([0, 0, 0]);
      expect(dv!.every(Number.isFinite)).toBe(true);
    },
  );
  test.each(["bfloat16", "float32"] as const)(
    "a window to both sides agrees with the oracle, %s",
    async (dtype) => {
      for (const window of [{ left: 20, right: 9 }, { right: 40 }, { left: 0, right: 0 }])
        await checkAttentionBackward(subject(dtype), {
          ...plain({ D: dtype === "float32" ? 8 : 96, S: 100, Sk: 150, G: 2 }),
          isCausal: false,
          window,
          kvLengths: [150, 131],
        });
    },
  );
  test.each([64, 96, 128])(
    "a full pass without any option agrees with the oracle, head size %p",
    async (D) => {
      const full = {
        dims: dims({ D, S: 64, Sk: 128, G: 2 }),
        isCausal: false,
        alibi: false,
        sinks: false,
        seed: 8,
      };
      await checkAttentionBackward(subject("bfloat16"), full);
      await checkAttentionBackward(subject("float16"), { ...full, softcap: 2 });
    },
  );
  test.each([
    [[1, 1, 1, 1]],
    [[2, 1, 1, 40]],
    [[1, 4, 20, 1]],
    [[1, 1, 20, 40]],
    [[20, 40]],
    [[2, 4, 20, 40]],
  ])("the gradient of a mask %p sums over the axes along which it is broadcast", async (shape) => {
    const problem: AttentionProblem = {
      ...rich({ D: 16, S: 20, Sk: 40, G: 2, Hkv: 2 }),
      kvLengths: [40, 33],
      mask: { kind: "additive", shape },
    };
    for (const dtype of ["bfloat16", "float32"] as const)
      await checkAttentionBackward(subject(dtype), problem);
  });

  test.each(["bfloat16", "float32"] as const)(
    "a sequence's gradients have the same bits every time, alone and in a batch, %s",
    async (dtype) => {
      const s = subject(dtype);
      const problem = { ...plain({ D: 64, S: 40, G: 2 }), sinks: false };
      const data = roundedData(problem, s);
      const [first, second] = [await gradients(problem, data, s), await gradients(problem, data, s)];
      expect(second).toEqual(first);
      const half = (x: Float64Array): Float64Array => x.slice(x.length / 2);
      const alone = { ...problem, dims: { ...problem.dims, B: 1 }, kvLengths: [97] };
      const { q, k, v, dOut, options } = data;
      const one = { q: half(q), k: half(k), v: half(v), dOut: half(dOut), options };
      const got = await gradients(alone, one, s);
      for (const name of ["dq", "dk", "dv"] as const) expect(got[name]).toEqual(half(first[name]));
    },
  );
});

/** Whether a gradient's row may depend on what stands in one row of an operand, of one sequence; and whether that shows in all of it. */
interface Reach {
  readonly rows: (h: number, i: number) => boolean;
  readonly keys: (kv: number, j: number) => boolean;
}
const isOfKeys = (where: string): boolean => where === "k" || where === "v";
/** Through the rows that have it or see it, to all keys that these see: by lse and delta. */
function reachOf(
  p: AttentionProblem,
  data: AttentionData,
  where: "q" | "dOut" | "k" | "v",
  at: number,
): Reach {
  const { S, Hq, Hkv } = p.dims;
  const G = Hq / Hkv;
  const sees = (h: number, i: number, j: number): boolean => isVisible(data.options, 0, h, i, j);
  const rows = (h: number, i: number): boolean => (isOfKeys(where) ? sees(h, i, at) : i === at);
  const keys = (kv: number, j: number): boolean =>
    Array.from({ length: G * S }, (_, n) => [kv * G + Math.floor(n / S), n % S] as const).some(
      ([h, i]) => rows(h, i) && sees(h, i, j),
    );
  return { rows, keys };
}

describe.skipIf(emulatedMissing !== undefined)("a number that is not finite, in attention backward", () => {
  const narrow: AttentionProblem = {
    dims: dims({ B: 1, S: 140, Sk: 140, G: 1, Hkv: 2 }),
    isCausal: true,
    window: { left: 9 },
    alibi: false,
    sinks: false,
    seed: 5,
  };
  const problems: readonly [string, AttentionProblem][] = [
    ["cut by a window", narrow],
    [
      "masked and dropped",
      { ...narrow, mask: { kind: "boolean", shape: [2, 140, 140] }, dropout: { probability: 0.5, seed: 2 } },
    ],
  ];
  for (const [name, problem] of problems)
    for (const dtype of ["bfloat16", "float16", "float32"] as const)
      test.each([
        ["q", NaN],
        ["dOut", NaN],
        ["dOut", Infinity],
        ["k", NaN],
        ["k", -Infinity],
        ["v", NaN],
        ["v", Infinity],
      ] as const)(
        `${name}, ${dtype}: in a row of %s, %p, changes no bit where it is hidden`,
        async (where, value) => {
          const s = subject(dtype);
          const { S, Sk, Hq, Hkv, D, Dv } = problem.dims;
          const data = roundedData(problem, s);
          const [at, column] = [70, 3];
          const clean = await gradients(problem, data, s);
          const odd = data[where].slice();
          const heads = isOfKeys(where) ? Hkv : Hq;
          const width = where === "dOut" || where === "v" ? Dv : D;
          for (let h = 0; h < heads; h++) odd[(at * heads + h) * width + column] = value;
          const got = await gradients(problem, { ...data, [where]: odd }, s);
          const reach = reachOf(problem, data, where, at);
          const row = (x: Float64Array, n: number, w: number): Float64Array => x.subarray(n * w, (n + 1) * w);
          for (let h = 0; h < Hq; h++)
            for (let i = 0; i < S; i++)
              if (!reach.rows(h, i)) expect(row(got.dq, i * Hq + h, D)).toEqual(row(clean.dq, i * Hq + h, D));
          for (let kv = 0; kv < Hkv; kv++)
            for (let j = 0; j < Sk; j++) {
              const [dk, dv] = [row(got.dk, j * Hkv + kv, D), row(got.dv, j * Hkv + kv, Dv)];
              const cleanDv = row(clean.dv, j * Hkv + kv, Dv);
              const reached = reach.keys(kv, j);
              if (!reached) expect(dk).toEqual(row(clean.dk, j * Hkv + kv, D));
              if (!reached || where === "v") expect(dv).toEqual(cleanDv);
              if (!reached || where !== "dOut") continue;
              expect(dk.some(Number.isFinite)).toBe(false);
              const kept = keepFactors(problem.dropout, [0, kv, at], Sk)[j] !== 0;
              const expected = kept ? cleanDv.with(column, value) : cleanDv;
              expect(dv.every((x, c) => Object.is(x, expected[c]))).toBe(true);
            }
        },
      );
});
