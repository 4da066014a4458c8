import { assertClose, inverseFrequencies } from "@heed/testkit";
import { ArgumentError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  ropeAttentionFactor,
  ropeFrequencies,
  type RopeScaling,
  type YarnScaling,
  yarnSoftmaxScale,
} from "../src/index.ts";
import { scaledRotation } from "./support/rope-oracle.ts";
import { scalings } from "./support/rope-problem.ts";

const LLAMA3 = {
  type: "llama3",
  factor: 8,
  lowFreqFactor: 1,
  highFreqFactor: 4,
  originalMaxPositions: 8192,
} as const;
const GPT_OSS = { type: "yarn", factor: 32, originalMaxPositions: 4096, truncate: false } as const;
const DEEPSEEK = {
  type: "yarn",
  factor: 40,
  originalMaxPositions: 4096,
  betaFast: 32,
  betaSlow: 1,
  mscale: 1,
  mscaleAllDim: 1,
} as const;
const QWEN = { type: "yarn", factor: 4, originalMaxPositions: 32768 } as const;
const LONG = {
  type: "longrope",
  shortFactor: [1, 1.5],
  longFactor: [4, 8],
  originalMaxPositions: 4096,
  factor: 32,
} as const;
/** By how much each frequency was divided. */
const divisors = (rotaryDim: number, base: number, scaling: RopeScaling, length?: number): number[] => {
  const plain = inverseFrequencies(base, rotaryDim);
  return Array.from(ropeFrequencies(rotaryDim, base, scaling, length), (f, j) => plain[j]! / f);
};

describe("frequencies", () => {
  test("without scaling, are base^(-2j / rotaryDim)", () => {
    assertClose(ropeFrequencies(128, 10000, { type: "none" }), inverseFrequencies(10000, 128), {
      rel: 1e-15,
    });
    expect([...ropeFrequencies(4, 100, { type: "none" })]).toEqual([1, 0.1]);
  });
  test("of every kind and length are those of the papers, amplitudes too", () => {
    const cases = fc
      .record({ half: fc.constantFrom(1, 2, 5, 32, 64), base: fc.constantFrom(100, 10000, 1e6) })
      .chain(({ half, base }) =>
        fc.record({
          half: fc.constant(half),
          base: fc.constant(base),
          scaling: scalings(half),
          length: fc.integer({ min: 0, max: 1 << 21 }),
        }),
      );
    fc.assert(
      fc.property(cases, ({ half, base, scaling, length }) => {
        const expected = scaledRotation(base, 2 * half, scaling, length);
        // YaRN's ramp can be a tenth of a pair wide, and its share of a frequency 64 times the rest.
        assertClose(ropeFrequencies(2 * half, base, scaling, length), expected.invFreq, {
          rel: scaling.type === "yarn" ? 1e-10 : 1e-13,
        });
        assertClose([ropeAttentionFactor(scaling)], [expected.attentionFactor], { rel: 1e-15 });
      }),
      { numRuns: 500 },
    );
  });
  // Pairs and values of Hugging Face's definitions, evaluated apart from this repository in float64.
  const known: readonly (readonly [string, number, number, RopeScaling, number, Record<number, number>])[] = [
    [
      "gpt-oss (yarn, bounds not rounded)",
      64,
      150000,
      GPT_OSS,
      0,
      {
        8: 0.050813274815461475,
        9: 0.03170569618466377,
        14: 0.0020937923789696887,
        17: 0.00012931870124506317,
        18: 3.8308812373753384e-5,
        31: 3.0235114281192144e-7,
      },
    ],
    [
      "DeepSeek-V3 (yarn)",
      64,
      10000,
      DEEPSEEK,
      0,
      {
        10: 0.056234132519034905,
        11: 0.03900692656714386,
        17: 0.0035619974943291656,
        22: 0.0001778279410038922,
        23: 3.33380358040831e-5,
        31: 3.33380358040831e-6,
      },
    ],
    [
      "Qwen2.5 (yarn)",
      128,
      1e6,
      QWEN,
      0,
      {
        23: 0.006978305848598663,
        24: 0.005375321490790102,
        32: 0.0006029411764705882,
        39: 6.490394320837028e-5,
        40: 4.445698525097307e-5,
        63: 3.102344401879299e-7,
      },
    ],
    [
      "Llama 3.1 (llama3)",
      128,
      500000,
      LLAMA3,
      0,
      {
        28: 0.003211445994752591,
        29: 0.002166570763503359,
        31: 0.0008567514129196321,
        34: 0.0001785078127679964,
        35: 9.556212353964683e-5,
        63: 3.068925988914511e-7,
      },
    ],
    [
      "a base that grew by 4^(8/6) (ntk)",
      8,
      10000,
      { type: "ntk", factor: 4 },
      0,
      { 0: 1, 1: 0.06299605249474366, 2: 0.003968502629920499, 3: 0.00025 },
    ],
    [
      "the same base at ten positions of four, factor 2 (dynamic)",
      8,
      10000,
      { type: "dynamic", factor: 2, originalMaxPositions: 4 },
      10,
      { 0: 1, 1: 0.06299605249474366, 2: 0.003968502629920499, 3: 0.00025 },
    ],
  ];
  test.each(known)("of %s", (_, rotaryDim, base, scaling, length, pairs) => {
    const found = ropeFrequencies(rotaryDim, base, scaling, length);
    const at = Object.keys(pairs).map(Number);
    assertClose(
      at.map((j) => found[j]!),
      Object.values(pairs),
      { rel: 1e-12 },
    );
  });
  test("llama3 keeps high frequencies, divides low ones and joins them in between", () => {
    // Llama 3.1: wavelengths below 8192 / 4 are pairs 0..28, those above 8192 are pairs 35..63.
    const ratio = divisors(128, 500000, LLAMA3);
    expect(ratio.slice(0, 29).every((r) => r === 1)).toBe(true);
    expect(ratio.slice(29, 35).every((r, i, all) => r > 1 && r < 8 && (i === 0 || r > all[i - 1]!))).toBe(
      true,
    );
    expect(ratio.slice(35).every((r) => Math.abs(r - 8) < 1e-12)).toBe(true);
  });
  test("yarn keeps what turns fast, divides what turns slowly, and rounds the ramp outwards unless told not to", () => {
    const rounded = divisors(64, 150000, { ...GPT_OSS, truncate: true });
    const exact = divisors(64, 150000, GPT_OSS); // the ramp goes from pair 8.09 to pair 17.40
    expect(rounded.findIndex((r) => r !== 1)).toBe(9);
    expect(exact.findIndex((r) => r !== 1)).toBe(9);
    expect(rounded[9]).toBeGreaterThan(exact[9]!);
    expect(rounded[17]).toBeLessThan(31);
    expect(exact[17]).toBeLessThan(31);
    for (const all of [rounded, exact]) assertClose(all.slice(18), new Array(14).fill(32), { rel: 1e-12 });
  });
  test("yarn divides all where nothing turns often enough, and none where everything does", () => {
    const scaling = { type: "yarn", factor: 8, truncate: false } as const;
    assertClose(divisors(8, 10000, { ...scaling, originalMaxPositions: 4 }), [8, 8, 8, 8], { rel: 1e-15 });
    expect(divisors(8, 10000, { ...scaling, originalMaxPositions: 1e12 })).toEqual([1, 1, 1, 1]);
  });
  test("dynamic and longrope change beyond the original context, not at it, and `length` decides alone", () => {
    const dynamic = { type: "dynamic", factor: 2, originalMaxPositions: 4 } as const;
    for (const length of [0, 1, 4]) expect(divisors(4, 10000, dynamic, length)).toEqual([1, 1]);
    assertClose(divisors(4, 10000, dynamic, 5), [1, 1.5], { rel: 1e-15 });
    expect(ropeFrequencies(4, 10000, { ...dynamic, length: 5 }, 99)).toEqual(
      ropeFrequencies(4, 10000, dynamic, 5),
    );
    for (const length of [0, 4096]) assertClose(divisors(4, 10000, LONG, length), [1, 1.5], { rel: 1e-15 });
    assertClose(divisors(4, 10000, LONG, 4097), [4, 8], { rel: 1e-15 });
    assertClose(divisors(4, 10000, { ...LONG, length: 1 }, 4097), [1, 1.5], { rel: 1e-15 });
  });
});
describe("amplitudes", () => {
  test("are 0.1 ln(factor) + 1 for yarn, or the ratio of two of them, or what is given", () => {
    expect(ropeAttentionFactor(GPT_OSS)).toBeCloseTo(1.3465735902799727, 15);
    expect(ropeAttentionFactor(DEEPSEEK)).toBe(1);
    expect(ropeAttentionFactor({ ...DEEPSEEK, mscaleAllDim: 0 })).toBeCloseTo(1.3688879454113936, 15);
    expect(ropeAttentionFactor({ ...DEEPSEEK, mscale: 2 })).toBeCloseTo(
      1.7377758908227872 / 1.3688879454113936,
      14,
    );
    expect(ropeAttentionFactor({ ...GPT_OSS, attentionFactor: 1.25 })).toBe(1.25);
    expect(ropeAttentionFactor({ ...GPT_OSS, factor: 1 })).toBe(1);
    expect(ropeAttentionFactor({ ...GPT_OSS, factor: 0.5 })).toBe(1);
  });
  test("are sqrt(1 + ln(factor) / ln(context)) for longrope, or what is given", () => {
    expect(ropeAttentionFactor(LONG)).toBeCloseTo(1.1902380714238083, 15); // Phi-3-mini-128k
    expect(ropeAttentionFactor({ ...LONG, factor: 1 })).toBe(1);
    expect(ropeAttentionFactor({ ...LONG, attentionFactor: 1.25 })).toBe(1.25);
  });
  test("are 1 for all other kinds", () => {
    for (const type of ["none", "linear", "ntk", "dynamic", "llama3"] as const)
      expect(ropeAttentionFactor({ ...LLAMA3, type } as RopeScaling)).toBe(1);
  });
  test("DeepSeek's softmax scale takes (0.1 mscaleAllDim ln(factor) + 1)^2", () => {
    expect(yarnSoftmaxScale(DEEPSEEK)).toBeCloseTo(1.8738542070926265, 14);
    expect(yarnSoftmaxScale({ ...DEEPSEEK, mscaleAllDim: 0.8 })).toBeCloseTo(
      (1 + 0.08 * Math.log(40)) ** 2,
      14,
    );
    for (const plain of [{ mscaleAllDim: 0 }, { mscaleAllDim: undefined }, { factor: 1 }, { factor: 0.5 }])
      expect(yarnSoftmaxScale({ ...DEEPSEEK, ...plain })).toBe(1);
    for (const other of [LLAMA3, LONG, { type: "none" }] as const) expect(yarnSoftmaxScale(other)).toBe(1);
    expect(() => yarnSoftmaxScale({ ...DEEPSEEK, factor: 0 })).toThrow("scaling.factor");
    expect(() => yarnSoftmaxScale({ type: "odd" } as never)).toThrow("scaling.type");
  });
});
describe("fields that make no sense are errors that name them", () => {
  const yarn = (change: Partial<Record<keyof YarnScaling, unknown>>): RopeScaling =>
    ({ ...DEEPSEEK, ...change }) as RopeScaling;
  const long = (change: object): RopeScaling => ({ ...LONG, ...change });
  const bad: readonly (readonly [string, unknown])[] = [
    [
      "scaling.type must be one of none, linear, ntk, dynamic, yarn, llama3, longrope; got odd",
      { type: "odd" },
    ],
    ["scaling.type must be one of", { type: "toString" }],
    ["scaling.type must be one of", {}],
    ["scaling.type must be one of", null],
    ["scaling.factor must be a finite number above 0; got undefined", { type: "linear" }],
    ["scaling.factor must be a finite number above 0; got undefined", { ...LLAMA3, factor: undefined }],
    ["scaling.factor must be a finite number above 0; got -1", { type: "ntk", factor: -1 }],
    ["scaling.factor must be a finite number above 0; got 2", { type: "linear", factor: "2" }],
    ['scaling "linear" has no field faktor', { type: "linear", factor: 2, faktor: 3 }],
    ['scaling "none" has no field factor', { type: "none", factor: 2 }],
    [
      "scaling.originalMaxPositions must be a finite number above 0; got undefined",
      { type: "dynamic", factor: 2 },
    ],
    ["scaling.length must be a finite number above 0; got 0", long({ length: 0 })],
    ["scaling.betaFast must be a finite number above 0; got 0", yarn({ betaFast: 0 })],
    ["scaling.betaSlow must be a finite number above 0; got NaN", yarn({ betaSlow: NaN })],
    ["scaling.betaFast must be at least betaSlow; got 1 and 2", yarn({ betaFast: 1, betaSlow: 2 })],
    ["scaling.truncate must be true or false; got 1", yarn({ truncate: 1 })],
    ["scaling.mscale must be a finite number of at least 0; got -1", yarn({ mscale: -1 })],
    [
      "scaling.mscaleAllDim must be a finite number of at least 0; got Infinity",
      yarn({ mscaleAllDim: Infinity }),
    ],
    ["scaling.attentionFactor must be a finite number above 0; got 0", yarn({ attentionFactor: 0 })],
    ["scaling.highFreqFactor must exceed lowFreqFactor; got 1 and 1", { ...LLAMA3, highFreqFactor: 1 }],
    ["scaling.shortFactor must list rotaryDim / 2 = 2 numbers; got 3", long({ shortFactor: [1, 2, 3] })],
    ["scaling.longFactor must list rotaryDim / 2 = 2 numbers; got 4", long({ longFactor: 4 })],
    ["scaling.longFactor[1] must be a finite number above 0; got 0", long({ longFactor: [1, 0] })],
    ["scaling.originalMaxPositions must exceed 1; got 1", long({ originalMaxPositions: 1 })],
  ];
  test.each(bad)("%s", (message, scaling) => {
    const make = (): unknown => ropeFrequencies(4, 10000, scaling as RopeScaling);
    expect(make).toThrow(ArgumentError);
    expect(make).toThrow(message);
  });
  test("what a rotation is too small for", () => {
    const small =
      (scaling: RopeScaling, base = 10000) =>
      () =>
        ropeFrequencies(2, base, scaling);
    expect(small({ type: "ntk", factor: 2 })).toThrow("NTK scaling needs a rotaryDim of at least 4; got 2");
    expect(small({ type: "dynamic", factor: 2, originalMaxPositions: 4 })).toThrow("at least 4; got 2");
    expect(small(DEEPSEEK, 1)).toThrow("YaRN needs a base above 1; got 1");
  });
});
