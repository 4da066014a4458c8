import "@heed/engine-cpu";
import {
  ArgumentError,
  DisposedError,
  type Engine,
  getEngine,
  memoryUsage,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import {
  assertClose,
  createRng,
  dotProduct,
  inverseFrequencies,
  ropeOracle,
  roundArray,
  toleranceFor,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { RotaryEmbedding, type RotaryEmbeddingOptions } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;

describe.each(engines)("RotaryEmbedding on %s", (name) => {
  const engine = getEngine(name);
  const int32 = (values: readonly number[], shape: readonly number[] = [values.length]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });
  const ramp = (n: number): Float64Array => Float64Array.from({ length: n }, (_, i) => i + 1);

  test("gives the known row: D 4, base 10000, 5..8 at position 1", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 4 });
      const out = toFloat64(rope.apply(upload(ramp(8), [1, 2, 1, 4], "float64", engine)));
      const row = [-3.1887853643145765, 5.919701335826659, 7.9894710651164615, 8.059599003338322];
      assertClose(out, [1, 2, 3, 4, ...row], { rel: 1e-15 });
    });
  });
  test("turns any part of a head at any positions, pairs of either kind, rounding once", () => {
    const cases = fc.record({
      dtype: fc.constantFrom(...DTYPES),
      B: fc.integer({ min: 1, max: 2 }),
      S: fc.integer({ min: 1, max: 4 }),
      H: fc.integer({ min: 1, max: 3 }),
      half: fc.integer({ min: 1, max: 4 }),
      rest: fc.integer({ min: 0, max: 3 }),
      pairing: fc.constantFrom("half" as const, "interleaved" as const),
      base: fc.constantFrom(10000, 500000),
      positions: fc.array(fc.oneof(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 20000 })), {
        minLength: 8,
        maxLength: 8,
      }),
      seed: fc.nat({ max: 0xffff }),
    });
    // One embedding per kind for all cases: tables must serve whatever came before.
    const made = new Map<string, RotaryEmbedding>();
    fc.assert(
      fc.property(cases, ({ dtype, B, S, H, half, rest, pairing, base, positions, seed }) => {
        scope(() => {
          const rotaryDim = 2 * half;
          const D = rotaryDim + rest;
          const key = `${rotaryDim}/${pairing}/${base}`;
          const rope = made.get(key) ?? new RotaryEmbedding({ rotaryDim, pairing, base });
          const x = roundArray(dtype, createRng(seed).normalArray(B * S * H * D));
          const at = positions.slice(0, B * S);
          const found = toFloat64(rope.apply(upload(x, [B, S, H, D], dtype, engine), int32(at, [B, S])));
          const expected = ropeOracle(x, {
            H,
            D,
            pairing,
            rotaryDim,
            positions: at,
            invFreq: inverseFrequencies(base, rotaryDim),
          });
          const { storage, accumulation } = toleranceFor(dtype);
          // Rounded: the table, two products, a sum, and the store.
          assertClose(found, expected, { rel: storage + 4 * accumulation });
        });
      }),
      { numRuns: 100 },
    );
    made.forEach((rope) => rope[Symbol.dispose]());
  });
  test("takes one start for all sequences, a row for all, or a row for each", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 4 });
      const x = upload(ramp(2 * 3 * 4), [2, 3, 1, 4], "float64", engine);
      const expected = toFloat64(rope.apply(x, int32([7, 8, 9, 7, 8, 9], [2, 3])));
      expect(toFloat64(rope.apply(x, 7))).toEqual(expected);
      expect(toFloat64(rope.apply(x, int32([7, 8, 9])))).toEqual(expected);
      expect(toFloat64(rope.apply(x))).not.toEqual(expected);
      const ragged = upload(ramp(2 * 3 * 4), [6, 1, 4], "float64", engine);
      expect(toFloat64(rope.apply(ragged, int32([7, 8, 9, 7, 8, 9])))).toEqual(expected);
    });
  });
  test("backward is the transposed rotation at the same positions", () => {
    for (const pairing of ["half", "interleaved"] as const) {
      scope(() => {
        const rope = new RotaryEmbedding({ rotaryDim: 4, pairing });
        const [x, d] = [createRng(1).normalArray(30), createRng(2).normalArray(30)];
        const at = int32([40, 3, 17]);
        const y = toFloat64(rope.apply(upload(x, [1, 3, 2, 5], "float64", engine), at));
        const back = toFloat64(rope.applyBackward(upload(d, [1, 3, 2, 5], "float64", engine), at));
        expect(Math.abs(dotProduct(d, y) - dotProduct(back, x))).toBeLessThan(1e-13);
        const again = toFloat64(rope.applyBackward(upload(y, [1, 3, 2, 5], "float64", engine), at));
        assertClose(again, x, { abs: 1e-14 });
      });
    }
  });
  test("linear scaling divides positions by the factor", () => {
    scope(() => {
      const x = upload(ramp(8), [1, 2, 1, 4], "float64", engine);
      const scaled = new RotaryEmbedding({ rotaryDim: 4, scaling: { type: "linear", factor: 2 } });
      const plain = new RotaryEmbedding({ rotaryDim: 4 });
      assertClose(toFloat64(scaled.apply(x, int32([6, 8]))), toFloat64(plain.apply(x, int32([3, 4]))), {
        rel: 1e-14,
      });
    });
  });
  test("tables grow by doubling, keep their old rows bit for bit, and serve 16-bit tensors too", () => {
    const before = memoryUsage();
    using rope = new RotaryEmbedding({ rotaryDim: 8 });
    const turn = (position: number, dtype: "float32" | "bfloat16" | "float64" = "float32"): Float64Array =>
      scope(() => toFloat64(rope.apply(upload(ramp(8), [1, 1, 1, 8], dtype, engine), position)));
    const rows = (bytes: number): number => bytes / (2 * 4 * 4); // cos and sin, 4 pairs, 4 bytes
    const early = turn(3);
    expect(rows(memoryUsage().bytes - before.bytes)).toBe(256);
    turn(255);
    turn(3, "bfloat16");
    expect(rows(memoryUsage().bytes - before.bytes)).toBe(256);
    const late = turn(300);
    expect(rows(memoryUsage().bytes - before.bytes)).toBe(512);
    turn(9000);
    expect(rows(memoryUsage().bytes - before.bytes)).toBe(16384);
    expect(memoryUsage().storages - before.storages).toBe(2);
    expect([turn(3), turn(300)]).toEqual([early, late]);
    turn(3, "float64");
    expect(memoryUsage().storages - before.storages).toBe(4);
    rope[Symbol.dispose]();
    expect(memoryUsage().storages).toBe(before.storages);
    expect(() => turn(3)).toThrow(DisposedError);
  });
  test("each engine has its own tables", () => {
    scope(() => {
      const twin = Object.create(engine, { name: { value: "twin" } }) as Engine;
      const rope = new RotaryEmbedding({ rotaryDim: 4 });
      const turn = (on: Engine): Tensor => rope.apply(upload(ramp(8), [1, 2, 1, 4], "float64", on), 3);
      expect([turn(engine).engine, turn(twin).engine, turn(engine).engine].map((e) => e.name)).toEqual([
        name,
        "twin",
        name,
      ]);
    });
  });
  test("positions below 0 or from maxPositions on are errors that name them", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 4, maxPositions: 300 });
      const x = upload(ramp(8), [1, 2, 1, 4], "float32", engine);
      expect(rope.apply(x, 298).shape).toEqual([1, 2, 1, 4]);
      expect(() => rope.apply(x, 299)).toThrow(
        "[RotaryEmbedding] position 300 is not below maxPositions 300",
      );
      expect(() => rope.apply(x, int32([0, 300]))).toThrow("position 300");
      expect(() => rope.apply(x, int32([0, -1]))).toThrow("position -1");
      for (const start of [-1, 0.5, NaN, Infinity]) expect(() => rope.apply(x, start)).toThrow(ArgumentError);
      expect(() => rope.apply(x, int32([2 ** 31 - 1, 0]))).toThrow(ArgumentError);
      expect(() => rope.apply(x, int32([0, 1, 2]))).toThrow(ShapeError);
      expect(() => rope.apply(x, int32([0, 1], [2, 1]))).toThrow(ShapeError);
      expect(() => rope.apply(x, tensor([0, 1], [2], { engine }) as never)).toThrow("int32");
    });
  });
});
test("options that make no rotation are errors that name them", () => {
  const sections = (pairs: unknown, order?: unknown): RotaryEmbeddingOptions =>
    ({ rotaryDim: 12, sections: { pairs, order } }) as RotaryEmbeddingOptions;
  const bad: readonly (readonly [string, RotaryEmbeddingOptions])[] = [
    ["rotaryDim must be even; got 3", { rotaryDim: 3 }],
    ["rotaryDim must be a whole number of at least 2; got 0", { rotaryDim: 0 }],
    ["base must be a finite number above 0; got 0", { rotaryDim: 4, base: 0 }],
    ["base must be a finite number above 0; got NaN", { rotaryDim: 4, base: NaN }],
    ["maxPositions must be a whole number from 1 to 2147483648; got 0", { rotaryDim: 4, maxPositions: 0 }],
    ['pairing must be "half" or "interleaved"; got other', { rotaryDim: 4, pairing: "other" as never }],
    ["scaling.type must be one of none", { rotaryDim: 4, scaling: { type: "other" } as never }],
    ["scaling.factor must be a finite", { rotaryDim: 4, scaling: { type: "linear", factor: -1 } }],
    ["positionFactor must be a finite number above 0; got 0", { rotaryDim: 4, positionFactor: 0 }],
    ["sections.pairs must add up to rotaryDim / 2 = 6; got 2, 2, 1", sections([2, 2, 1])],
    ["sections.pairs must be three numbers; got 6", sections(6)],
    ["sections.pairs must be three numbers; got 3,3", sections([3, 3])],
    ["sections.pairs[1] must be a whole number of at least 0; got -1", sections([5, -1, 2])],
    ["sections.pairs 1, 4, 1 cannot be interleaved", sections([1, 4, 1], "interleaved")],
    ['sections.order must be "blocks" or "interleaved"; got other', sections([2, 2, 2], "other")],
  ];
  for (const [message, options] of bad) {
    expect(() => new RotaryEmbedding(options)).toThrow(ArgumentError);
    expect(() => new RotaryEmbedding(options)).toThrow(message);
  }
});
