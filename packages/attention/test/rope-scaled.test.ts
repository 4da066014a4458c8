/** Calls of RotaryEmbedding under every scaling, the length in use, and scaleRope. */
import "@heed/engine-cpu";
import {
  ArgumentError,
  copyInto,
  type Engine,
  getEngine,
  memoryUsage,
  recordTape,
  scope,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import {
  assertClose,
  createRng,
  dotProduct,
  ropeBackwardOracle,
  ropeOracle,
  roundArray,
  toleranceFor,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  GroupedQueryAttention,
  MultiHeadLatentAttention,
  RotaryEmbedding,
  type RopeScaling,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";
import { scaledRotation } from "./support/rope-oracle.ts";
import { rotations } from "./support/rope-problem.ts";

const DYNAMIC = { type: "dynamic", factor: 4, originalMaxPositions: 8 } as const;
const LONG = {
  type: "longrope",
  shortFactor: [1, 2],
  longFactor: [3, 5],
  originalMaxPositions: 8,
  factor: 4,
} as const;
const YARN = { type: "yarn", factor: 8, originalMaxPositions: 64 } as const;

describe.each(engines)("RotaryEmbedding on %s", (name) => {
  const engine = getEngine(name);
  const int32 = (values: readonly number[], shape: readonly number[] = [values.length]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });
  const values = createRng(5).normalArray(64);
  /** Tokens of heads of 4 as float64, turned from `start` on, or at positions. */
  const turned = (
    rope: RotaryEmbedding,
    tokens: number,
    where: number | readonly number[] = 0,
  ): Float64Array =>
    scope(() => {
      const x = upload(values.slice(0, 4 * tokens), [1, tokens, 1, 4], "float64", engine);
      return toFloat64(rope.apply(x, typeof where === "number" ? where : int32(where)));
    });

  test("turns by every scaling, backward too, rounding once", () => {
    const cases = fc.record({
      rotation: rotations(),
      dtype: fc.constantFrom("float64" as const, "float32" as const, "float16" as const, "bfloat16" as const),
      B: fc.integer({ min: 1, max: 2 }),
      S: fc.integer({ min: 1, max: 4 }),
      rest: fc.integer({ min: 0, max: 3 }),
      pairing: fc.constantFrom("half" as const, "interleaved" as const),
      positionFactor: fc.constantFrom(1, 1, 4),
      at: fc.oneof(
        fc.integer({ min: 0, max: 300 }),
        fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 8, maxLength: 8 }),
      ),
      seed: fc.nat({ max: 0xffff }),
    });
    fc.assert(
      fc.property(cases, ({ rotation, dtype, B, S, rest, pairing, positionFactor, at, seed }) => {
        scope(() => {
          const { half, base, scaling } = rotation;
          const [rotaryDim, H] = [2 * half, 2];
          const D = rotaryDim + rest;
          const rope = new RotaryEmbedding({ rotaryDim, base, pairing, scaling, positionFactor });
          const x = roundArray(dtype, createRng(seed).normalArray(B * S * H * D));
          const positions = Array.from({ length: B * S }, (_, t) =>
            typeof at === "number" ? at + (t % S) : at[t]!,
          );
          const { invFreq, attentionFactor } = scaledRotation(
            base,
            rotaryDim,
            scaling,
            Math.max(...positions) + 1,
          );
          const expected = {
            H,
            D,
            pairing,
            rotaryDim,
            positions,
            invFreq: invFreq.map((f) => f / positionFactor),
            attentionFactor,
          };
          const where = typeof at === "number" ? at : int32(positions, [B, S]);
          const input = upload(x, [B, S, H, D], dtype, engine);
          const { storage, accumulation } = toleranceFor(dtype);
          // Rounded: the table, two products, a sum, and the store. YaRN's ramp is known to 1e-10 of a
          // frequency, angles go up to 300.
          const tolerance = { rel: storage + 4 * accumulation, abs: scaling.type === "yarn" ? 3e-7 : 1e-10 };
          assertClose(toFloat64(rope.apply(input, where)), ropeOracle(x, expected), tolerance);
          assertClose(
            toFloat64(rope.applyBackward(input, where)),
            ropeBackwardOracle(x, expected),
            tolerance,
          );
        });
      }),
      { numRuns: 150 },
    );
  });
  test("backward is the gradient under every scaling, by central differences", () => {
    const cases = fc.record({
      rotation: rotations(),
      pairing: fc.constantFrom("half" as const, "interleaved" as const),
      at: fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 3, maxLength: 3 }),
      seed: fc.nat({ max: 0xffff }),
    });
    fc.assert(
      fc.property(cases, ({ rotation: { half, base, scaling }, pairing, at, seed }) => {
        scope(() => {
          const rope = new RotaryEmbedding({ rotaryDim: 2 * half, base, pairing, scaling });
          const rng = createRng(seed);
          const D = 2 * half + 1;
          const [x, dOut, direction] = [0, 0, 0].map(() => rng.normalArray(3 * D)) as [
            Float64Array,
            Float64Array,
            Float64Array,
          ];
          const where = int32(at);
          const on = (v: Float64Array): Tensor<"float64"> => upload(v, [1, 3, 1, D], "float64", engine);
          const loss = (step: number): number =>
            dotProduct(toFloat64(rope.apply(on(x.map((v, i) => v + step * direction[i]!)), where)), dOut);
          const slope = (loss(0.5) - loss(-0.5)) / 1; // linear: any step is exact
          const gradient = toFloat64(rope.applyBackward(on(dOut), where));
          expect(Math.abs(dotProduct(gradient, direction) - slope)).toBeLessThan(1e-12 * 3 * D);
        });
      }),
      { numRuns: 60 },
    );
  });
  test("the length in use is one more than the largest position of the call", () => {
    scope(() => {
      for (const scaling of [DYNAMIC, LONG] as const) {
        const rope = new RotaryEmbedding({ rotaryDim: 4, scaling });
        const fixed = (length: number): RotaryEmbedding =>
          new RotaryEmbedding({ rotaryDim: 4, scaling: { ...scaling, length } });
        expect(turned(rope, 8)).toEqual(turned(fixed(8), 8));
        expect(turned(rope, 9)).toEqual(turned(fixed(9), 9));
        expect(turned(rope, 2, [3, 20])).toEqual(turned(fixed(21), 2, [3, 20]));
        expect(turned(rope, 1, 20)).toEqual(turned(fixed(21), 1, 20));
        expect(turned(fixed(9), 8)).not.toEqual(turned(fixed(8), 8));
        // A longer call in between leaves nothing behind.
        expect(turned(rope, 8)).toEqual(turned(fixed(8), 8));
        if (scaling === DYNAMIC) expect(turned(fixed(21), 9)).not.toEqual(turned(fixed(9), 9));
      }
    });
  });
  test("with a fixed length any split of the tokens gives the same result", () => {
    scope(() => {
      for (const scaling of [DYNAMIC, LONG] as const) {
        const rope = new RotaryEmbedding({ rotaryDim: 4, scaling: { ...scaling, length: 16 } });
        const whole = turned(rope, 16);
        const last = scope(() =>
          toFloat64(rope.apply(upload(values.slice(40, 64), [1, 6, 1, 4], "float64", engine), 10)),
        );
        expect([...turned(rope, 10), ...last]).toEqual([...whole]);
      }
    });
  });
  test("calls of many lengths leave no more tables than lengths that come again", () => {
    const before = memoryUsage();
    for (const [scaling, tables] of [
      [DYNAMIC, 1], // the original context's
      [LONG, 2], // short and long
    ] as const) {
      using rope = new RotaryEmbedding({ rotaryDim: 4, scaling });
      for (let start = 0; start < 30; start++) turned(rope, 1, start);
      expect(memoryUsage().storages - before.storages).toBe(2 * tables);
    }
    expect(memoryUsage().storages).toBe(before.storages);
  });
  test("on a device, a scaling by length asks for it", () => {
    scope(() => {
      const device = Object.create(engine, { device: { value: "cuda" } }) as Engine;
      const at = tensor(Int32Array.of(1), [1, 1], { dtype: "int32", engine: device });
      const x = upload(values.slice(0, 4), [1, 1, 1, 4], "float32", device);
      for (const scaling of [DYNAMIC, LONG] as const) {
        const rope = new RotaryEmbedding({ rotaryDim: 4, scaling, maxPositions: 32 });
        expect(() => rope.apply(x, at)).toThrow(ArgumentError);
        expect(() => rope.apply(x, at)).toThrow("give scaling.length");
        const known = new RotaryEmbedding({
          rotaryDim: 4,
          scaling: { ...scaling, length: 9 },
          maxPositions: 32,
        });
        expect(known.apply(x, at).shape).toEqual([1, 1, 1, 4]);
        expect(rope.apply(x, 20).shape).toEqual([1, 1, 1, 4]);
      }
    });
  });
  test("a tape replays positions with the recorded frequencies and refuses others", () => {
    scope(() => {
      const x = upload(values.slice(0, 4), [1, 1, 1, 4], "float64", engine);
      for (const [scaling, same, other] of [
        [DYNAMIC, 7, 8],
        [LONG, 7, 8],
        [YARN, 99, undefined],
      ] as const) {
        const rope = new RotaryEmbedding({ rotaryDim: 4, scaling });
        const at = int32([3], [1, 1]);
        const { outputs, tape } = recordTape(engine, () => rope.apply(x, at));
        const move = (position: number): void => copyInto(int32([position], [1, 1]), at);
        turned(rope, 1, same); // the tape's table may be an old one by now
        move(same);
        tape.replay();
        expect(toFloat64(outputs)).toEqual(toFloat64(rope.apply(x, same)));
        if (other === undefined) continue;
        move(other);
        expect(() => tape.replay()).toThrow("record again");
      }
      const rope = new RotaryEmbedding({ rotaryDim: 4, scaling: DYNAMIC });
      const at = int32([20], [1, 1]);
      const { outputs, tape } = recordTape(engine, () => rope.apply(x, at));
      tape.replay();
      expect(toFloat64(outputs)).toEqual(toFloat64(rope.apply(x, 20)));
      copyInto(int32([21], [1, 1]), at);
      expect(() => tape.replay()).toThrow(ArgumentError);
    });
  });
  test("positions are checked beyond the original context too", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 4, scaling: DYNAMIC, maxPositions: 20 });
      expect(() => turned(rope, 2, [0, -1])).toThrow("position -1 is below 0");
      expect(() => turned(rope, 2, [12, -1])).toThrow("position -1 is below 0");
      expect(() => turned(rope, 1, [20])).toThrow("position 20 is not below maxPositions 20");
      rope[Symbol.dispose]();
      expect(() => turned(rope, 1, [12])).toThrow("was disposed");
    });
  });
  describe("scaleRope", () => {
    const rope = (scaling: RopeScaling): RotaryEmbedding => new RotaryEmbedding({ rotaryDim: 4, scaling });

    test("divides positions, whatever the scaling, and undoes itself with 1", () => {
      scope(() => {
        for (const scaling of [{ type: "none" }, { type: "linear", factor: 2 }, YARN] as const) {
          const scaled = rope(scaling);
          const plain = turned(rope(scaling), 2, [3, 4]);
          expect(turned(scaled, 2, [3, 4])).toEqual(plain);
          scaled.scaleRope(2);
          assertClose(turned(scaled, 2, [6, 8]), plain, { rel: 1e-14 });
          expect(turned(scaled, 2, [3, 4])).not.toEqual(plain);
          scaled.scaleRope(1);
          expect(turned(scaled, 2, [3, 4])).toEqual(plain);
        }
      });
    });
    test("is linear scaling where there is none", () => {
      scope(() => {
        const scaled = rope({ type: "none" });
        scaled.scaleRope(4);
        expect(turned(scaled, 3, 5)).toEqual(turned(rope({ type: "linear", factor: 4 }), 3, 5));
      });
    });
    test("twice with the same factor changes nothing further", () => {
      scope(() => {
        const scaled = rope(YARN);
        scaled.scaleRope(4);
        const once = turned(scaled, 4, 9);
        scaled.scaleRope(4);
        expect(turned(scaled, 4, 9)).toEqual(once);
        expect(scaled.options.positionFactor).toBe(4);
      });
    });
    test("never touches amplitudes", () => {
      scope(() => {
        const scaled = rope({ type: "none" });
        scaled.scaleRope(7);
        const y = turned(scaled, 4, 30);
        for (let t = 0; t < 4; t++) {
          for (let j = 0; j < 2; j++) {
            const length = (of: Float64Array): number => Math.hypot(of[4 * t + j]!, of[4 * t + j + 2]!);
            expect(Math.abs(length(y) - length(values))).toBeLessThan(1e-14);
          }
        }
      });
    });
    test("frees the tables of the old angles", () => {
      const before = memoryUsage().storages;
      using scaled = rope({ type: "none" });
      turned(scaled, 2);
      scaled.scaleRope(2);
      expect(memoryUsage().storages).toBe(before);
    });
    test("of an embedding reaches the layers that share it", () => {
      scope(() => {
        const shared = rope({ type: "none" });
        const sizes = { hiddenSize: 8, numHeads: 2, numKvHeads: 1, engine, dtype: "float64" } as const;
        const layer = GroupedQueryAttention.create({ ...sizes, rope: shared, seed: 3 });
        const x = upload(values.slice(0, 24), [1, 3, 8], "float64", engine);
        shared.scaleRope(4);
        const linear = GroupedQueryAttention.create({
          ...sizes,
          rope: { scaling: { type: "linear", factor: 4 } },
          seed: 3,
        });
        expect(toFloat64(layer.forward(x))).toEqual(toFloat64(linear.forward(x)));
      });
    });
    test("of a latent layer divides positions, shows in its attributes, and needs a rotation", () => {
      scope(() => {
        const sizes = {
          hiddenSize: 8,
          numHeads: 2,
          kvLoraRank: 4,
          qkNopeHeadDim: 4,
          qkRopeHeadDim: 4,
          vHeadDim: 4,
          engine,
          dtype: "float64",
          seed: 3,
        } as const;
        const x = upload(values.slice(0, 24), [1, 3, 8], "float64", engine);
        const out = (layer: MultiHeadLatentAttention): Float64Array => toFloat64(layer.forward(x));
        const layer = MultiHeadLatentAttention.create({ ...sizes, rope: {} });
        const before = out(layer);
        layer.scaleRope(4);
        layer.scaleRope(4);
        const linear = { scaling: { type: "linear", factor: 4 } } as const;
        expect(out(layer)).toEqual(out(MultiHeadLatentAttention.create({ ...sizes, rope: linear })));
        expect(out(layer)).not.toEqual(before);
        expect(layer.attributes().rope?.positionFactor).toBe(4);
        expect(out(new MultiHeadLatentAttention(layer.attributes(), layer.parameters))).toEqual(out(layer));
        const still = MultiHeadLatentAttention.create({ ...sizes, rope: null });
        expect(() => still.scaleRope(4)).toThrow("scaleRope needs a layer with rope");
      });
    });
    test("refuses a factor that is not above 0", () => {
      scope(() => {
        for (const factor of [0, -1, NaN, Infinity])
          expect(() => rope({ type: "none" }).scaleRope(factor)).toThrow(ArgumentError);
      });
    });
  });
  test("options round-trip as plain JSON, and are a copy", () => {
    fc.assert(
      fc.property(rotations(), fc.constantFrom(1, 3), ({ half, base, scaling }, positionFactor) => {
        scope(() => {
          const first = new RotaryEmbedding({ rotaryDim: 2 * half, base, scaling, positionFactor });
          const json = JSON.stringify(first.options);
          const again = new RotaryEmbedding(JSON.parse(json) as typeof first.options);
          expect(JSON.stringify(again.options)).toBe(json);
          expect(again.options).toEqual(first.options);
          const x = upload(values.slice(0, 6 * half), [3, 1, 2 * half], "float64", engine);
          for (const start of [0, 30])
            expect(toFloat64(again.apply(x, start))).toEqual(toFloat64(first.apply(x, start)));
        });
      }),
      { numRuns: 60 },
    );
    const list = [1, 2];
    using rope = new RotaryEmbedding({ rotaryDim: 4, scaling: { ...LONG, shortFactor: list } });
    list[0] = 99;
    expect(rope.options.scaling).toEqual(LONG);
  });
});
