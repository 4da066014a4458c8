/** Multimodal positions: a frame, a row and a column for each token. */
import "@heed/engine-cpu";
import {
  ArgumentError,
  copyInto,
  getEngine,
  recordTape,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose, createRng, dotProduct, ropeTableOracle, roundArray, toleranceFor } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { GroupedQueryAttention, type RopeSections, RotaryEmbedding } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";
import { scaledRotation } from "./support/rope-oracle.ts";
import { scalings } from "./support/rope-problem.ts";

/**
 * The axis of each pair as the models' code lays them out: blocks one after the other; or the frame's
 * everywhere, overwritten by rows at 1, 4, 7, ... < 3 rows and by columns at 2, 5, 8, ... < 3 columns.
 */
function axes({ pairs, order }: RopeSections): number[] {
  if (order !== "interleaved") return pairs.flatMap((n, axis) => new Array<number>(n).fill(axis));
  const all = new Array<number>(pairs[0] + pairs[1] + pairs[2]).fill(0);
  for (const axis of [1, 2] as const) for (let j = axis; j < 3 * pairs[axis]; j += 3) all[j] = axis;
  return all;
}
const SECTIONS: readonly RopeSections[] = [
  { pairs: [1, 2, 3] },
  { pairs: [2, 2, 2], order: "interleaved" },
  { pairs: [4, 1, 1], order: "interleaved" },
  { pairs: [6, 0, 0] },
  { pairs: [0, 3, 3] },
];

describe.each(engines)("sections on %s", (name) => {
  const engine = getEngine(name);
  const int32 = (values: readonly number[], shape: readonly number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });

  test("every pair turns by the position of its section, under every scaling, backward too", () => {
    const [B, S, H, D, half] = [2, 3, 2, 13, 6] as const;
    const cases = fc.record({
      sections: fc.constantFrom(...SECTIONS),
      scaling: scalings(half),
      pairing: fc.constantFrom("half" as const, "interleaved" as const),
      dtype: fc.constantFrom("float64" as const, "float32" as const, "bfloat16" as const),
      at: fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 18, maxLength: 18 }),
      seed: fc.nat({ max: 0xffff }),
    });
    fc.assert(
      fc.property(cases, ({ sections, scaling, pairing, dtype, at, seed }) => {
        scope(() => {
          const rope = new RotaryEmbedding({ rotaryDim: 2 * half, pairing, sections, scaling });
          const rotation = scaledRotation(10000, 2 * half, scaling, Math.max(...at) + 1);
          const axis = axes(sections);
          const angles = Float64Array.from({ length: B * S * half }, (_, n) => {
            const [token, j] = [Math.floor(n / half), n % half];
            return at[axis[j]! * B * S + token]! * rotation.invFreq[j]!;
          });
          const times = (f: (angle: number) => number): Float64Array =>
            angles.map((a) => rotation.attentionFactor * f(a));
          const x = roundArray(dtype, createRng(seed).normalArray(B * S * H * D));
          const input = upload(x, [B, S, H, D], dtype, engine);
          const options = { H, D, pairing, rotaryDim: 2 * half };
          const { storage, accumulation } = toleranceFor(dtype);
          const tolerance = { rel: storage + 4 * accumulation, abs: scaling.type === "yarn" ? 3e-8 : 1e-11 };
          const where = int32(at, [3, B, S]);
          assertClose(
            toFloat64(rope.apply(input, where)),
            ropeTableOracle(x, times(Math.cos), times(Math.sin), options),
            tolerance,
          );
          assertClose(
            toFloat64(rope.applyBackward(input, where)),
            ropeTableOracle(
              x,
              times(Math.cos),
              times((a) => -Math.sin(a)),
              options,
            ),
            tolerance,
          );
        });
      }),
      { numRuns: 150 },
    );
  });
  test("Qwen3-VL's 24, 20, 20 pairs alternate frame, row, column and end in frames", () => {
    scope(() => {
      const rope = new RotaryEmbedding({
        rotaryDim: 128,
        sections: { pairs: [24, 20, 20], order: "interleaved" },
      });
      const x = upload(new Float64Array(128).fill(1), [1, 1, 1, 128], "float64", engine);
      const turning = (axis: number): number[] => {
        const y = toFloat64(
          rope.apply(
            x,
            int32(
              [0, 1, 2].map((a) => (a === axis ? 1 : 0)),
              [3, 1, 1],
            ),
          ),
        );
        return [...y.keys()].filter((j) => j < 64 && y[j] !== 1);
      };
      const every = (from: number, to: number): number[] =>
        Array.from({ length: 64 }, (_, j) => j).filter((j) => j % 3 === from && j < to);
      expect(turning(1)).toEqual(every(1, 60));
      expect(turning(2)).toEqual(every(2, 60));
      expect(turning(0)).toEqual([...every(0, 64), 61, 62].sort((a, b) => a - b));
    });
  });
  test("three equal positions are one position, bit for bit", () => {
    scope(() => {
      const at = [4, 9, 2, 30, 7, 7];
      const x = upload(createRng(3).normalArray(6 * 12), [2, 3, 1, 12], "float32", engine);
      for (const sections of SECTIONS) {
        const rope = new RotaryEmbedding({ rotaryDim: 12, sections });
        const text = toFloat64(new RotaryEmbedding({ rotaryDim: 12 }).apply(x, int32(at, [2, 3])));
        expect(toFloat64(rope.apply(x, int32([...at, ...at, ...at], [3, 2, 3])))).toEqual(text);
        expect(toFloat64(rope.apply(x, int32(at, [2, 3])))).toEqual(text);
      }
    });
  });
  test("backward is the gradient, by a central difference", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 12, sections: SECTIONS[0] });
      const [x, d, e] = [1, 2, 3].map((seed) => createRng(seed).normalArray(4 * 12));
      const where = int32([0, 1, 2, 3, 9, 8, 7, 6, 20, 0, 20, 0], [3, 1, 4]);
      const on = (v: Float64Array): Tensor<"float64"> => upload(v, [1, 4, 1, 12], "float64", engine);
      const loss = (step: number): number =>
        dotProduct(toFloat64(rope.apply(on(x!.map((v, i) => v + step * e![i]!)), where)), d!);
      const gradient = toFloat64(rope.applyBackward(on(d!), where));
      expect(Math.abs(dotProduct(gradient, e!) - (loss(0.5) - loss(-0.5)))).toBeLessThan(1e-12);
    });
  });
  test("a tape replays new positions bit for bit", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 12, sections: SECTIONS[1] });
      const x = upload(createRng(3).normalArray(24), [1, 2, 1, 12], "float32", engine);
      const at = int32([0, 1, 2, 3, 4, 5], [3, 1, 2]);
      const { outputs, tape } = recordTape(engine, () => rope.apply(x, at));
      copyInto(int32([9, 9, 2, 7, 0, 30], [3, 1, 2]), at);
      const old = toFloat64(outputs);
      tape.replay();
      expect(toFloat64(outputs)).toEqual(toFloat64(rope.apply(x, at)));
      expect(toFloat64(outputs)).not.toEqual(old);
    });
  });
  test("scaleRope divides all three positions, and options round-trip", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 12, sections: SECTIONS[1] });
      const x = upload(createRng(3).normalArray(12), [1, 1, 1, 12], "float64", engine);
      const plain = toFloat64(rope.apply(x, int32([1, 2, 3], [3, 1, 1])));
      rope.scaleRope(2);
      const again = new RotaryEmbedding(
        JSON.parse(JSON.stringify(rope.options)) as { readonly rotaryDim: number },
      );
      for (const scaled of [rope, again])
        assertClose(toFloat64(scaled.apply(x, int32([2, 4, 6], [3, 1, 1]))), plain, { rel: 1e-14 });
    });
  });
  test("a layer turns by all three positions, and its gradient with them", () => {
    scope(() => {
      const sizes = {
        hiddenSize: 24,
        numHeads: 2,
        numKvHeads: 1,
        engine,
        dtype: "float64",
        seed: 3,
      } as const;
      const layer = GroupedQueryAttention.create({ ...sizes, rope: { sections: SECTIONS[0] } });
      const [x, d, e] = [4, 5, 6].map((seed) => createRng(seed).normalArray(3 * 24));
      const on = (v: Float64Array): Tensor<"float64"> => upload(v, [1, 3, 24], "float64", engine);
      const [frames, rows, columns] = [
        [0, 1, 1],
        [0, 1, 2],
        [0, 5, 3],
      ] as const;
      const positions = int32([...frames, ...rows, ...columns], [3, 1, 3]);
      const plain = GroupedQueryAttention.create({ ...sizes, rope: {} });
      expect(toFloat64(layer.forward(on(x!), { positions }))).not.toEqual(toFloat64(plain.forward(on(x!))));
      expect(toFloat64(layer.forward(on(x!)))).toEqual(toFloat64(plain.forward(on(x!))));
      const step = 1e-5;
      const loss = (s: number): number =>
        dotProduct(toFloat64(layer.forward(on(x!.map((v, i) => v + s * e![i]!)), { positions })), d!);
      const { input } = layer.vjp(on(x!), { positions }).backward(on(d!));
      const slope = (loss(step) - loss(-step)) / (2 * step);
      // The third derivative times step^2 / 6, and the rounding of both losses over step.
      expect(Math.abs(dotProduct(toFloat64(input), e!) - slope)).toBeLessThan(
        1e-7 * Math.max(1, Math.abs(slope)),
      );
    });
  });
  test("positions of another shape, or without sections, are errors", () => {
    scope(() => {
      const plain = new RotaryEmbedding({ rotaryDim: 12 });
      const rope = new RotaryEmbedding({ rotaryDim: 12, sections: SECTIONS[0], maxPositions: 40 });
      const x = upload(createRng(3).normalArray(24), [1, 2, 1, 12], "float32", engine);
      const [good, bad] = [int32([0, 1, 2, 3, 4, 5], [3, 1, 2]), int32([0, 1, 2, 3], [2, 1, 2])];
      expect(() => plain.apply(x, good)).toThrow(ShapeError);
      expect(() => plain.apply(x, good)).toThrow("without sections");
      expect(() => rope.apply(x, bad)).toThrow(ShapeError);
      expect(() => rope.apply(x, bad)).toThrow("or [3, 1, 2]");
      expect(() => rope.apply(x, int32([0, 1, 2, 3, 4, -1], [3, 1, 2]))).toThrow("position -1 is below 0");
      expect(() => rope.apply(x, int32([0, 1, 2, 3, 4, 40], [3, 1, 2]))).toThrow(ArgumentError);
    });
  });
});
