import "@heed/engine-cpu";
import {
  ArgumentError,
  concat,
  DTypeError,
  type FloatDType,
  getEngine,
  memoryUsage,
  scope,
  ShapeError,
  sum,
  tensor,
  type Tensor,
  toFloat64,
  trackLeaks,
  zeros,
} from "@heed/tensor";
import { assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  documentIds,
  documentPositions,
  MultiHeadLatentAttention,
  type MultiHeadLatentAttentionInputs,
  type MultiHeadLatentAttentionOptions,
  type MultiHeadLatentAttentionVjpOptions,
  type PastLatentRows,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { flatGradients as flat } from "./support/gradients.ts";
import { upload } from "./support/problem.ts";

const SMALL = {
  hiddenSize: 8,
  numHeads: 3,
  qLoraRank: 5,
  kvLoraRank: 6,
  qkNopeHeadDim: 4,
  qkRopeHeadDim: 2,
  vHeadDim: 3,
  bias: true,
} as const satisfies MultiHeadLatentAttentionOptions;
const ROWS = [2, 3, 8] as const; // x of most tests

describe.each(engines)("MultiHeadLatentAttention and its past on %s", (name) => {
  const engine = getEngine(name);
  const on = { engine, dtype: "float64" } as const;
  const random = (seed: number, ...shape: number[]): Tensor<"float64"> =>
    upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b, 1)), shape, "float64", engine);
  const int32 = (values: readonly number[], ...shape: number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });
  /** A layer whose values 16 bits hold exactly, of a scale at which attention is far from uniform. */
  const layerIn = <D extends FloatDType>(
    dtype: D,
    options: Partial<MultiHeadLatentAttentionOptions> = {},
  ): MultiHeadLatentAttention => {
    const all = { ...SMALL, ...options };
    const { parameters } = MultiHeadLatentAttention.create({ ...all, ...on, seed: 4 });
    const coarse = (t: Tensor): Tensor =>
      upload(
        toFloat64(t).map((w) => Math.round(30 * 16 * w) / 16 / (t.rank === 1 ? 30 : 1)),
        t.shape,
        dtype,
        engine,
      );
    return MultiHeadLatentAttention.fromParameters(
      all,
      new Map([...parameters].map(([key, t]) => [key, coarse(t)])),
    );
  };
  const past = (P: number, lengths?: readonly number[]): PastLatentRows<"float64"> => ({
    latent: random(21, 2, P, 6),
    rotaryKey: random(22, 2, P, 2),
    ...(lengths && { lengths: int32(lengths, 2) }),
  });

  test("a sequence in any chunks, each with the present of the one before, is one pass, in every dtype", () => {
    const splits = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 });
    const dtypes = fc.constantFrom<FloatDType>("float64", "float32", "float16", "bfloat16");
    const ropes = fc.constantFrom({}, { pairing: "half" as const }, null);
    fc.assert(
      fc.property(splits, dtypes, ropes, fc.boolean(), (split, dtype, rope, isLowRank) =>
        scope(() => {
          const layer = layerIn(dtype, { rope, qLoraRank: isLowRank ? 5 : null });
          const L = split.reduce((a, b) => a + b, 0);
          const x = upload(createRng(L).normalArray(2 * L * 8), [2, L, 8], dtype, engine);
          const outputs: Tensor<FloatDType>[] = [];
          let at = 0;
          let before: PastLatentRows | undefined;
          for (const n of split) {
            const chunk = x.slice(1, at, (at += n)) as Tensor<FloatDType>;
            const { output, present } = layer.forwardWithPresent(chunk, { past: before });
            outputs.push(output);
            before = present;
          }
          expect([before!.latent.shape, before!.rotaryKey.shape]).toEqual([
            [2, L, 6],
            [2, L, 2],
          ]);
          const whole = toFloat64(layer.forward(x));
          assertClose(toFloat64(concat(outputs, 1)), whole, {
            rel: conformanceTolerance(dtype, "forward"),
            name: dtype,
          });
        }),
      ),
      { numRuns: 40 },
    );
  });
  test("sequences of different lengths go on together as each does alone", () => {
    scope(() => {
      const layer = layerIn("float64");
      const [x, y] = [random(1, 2, 4, 8), random(2, 2, 3, 8)];
      const kvLengths = int32([4, 2], 2);
      const first = layer.forwardWithPresent(x, { kvLengths });
      const ragged = { ...first.present, lengths: first.present.lengths ?? kvLengths };
      const second = layer.forwardWithPresent(y, { past: ragged });
      expect([...toFloat64(second.present.lengths!)]).toEqual([7, 5]);
      for (const [b, length] of [4, 2].entries()) {
        const own = concat([x.select(0, b).slice(0, 0, length), y.select(0, b)], 0).unsqueeze(0);
        const alone = toFloat64(layer.forward(own.contiguous() as Tensor<"float64">).slice(1, length));
        assertClose(toFloat64(second.output.select(0, b)), alone, { rel: 1e-12, name: `sequence ${b}` });
      }
    });
  });
  test("the result depends on early tokens", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, 2, 1, 8);
      const given = past(4);
      const before = toFloat64(layer.forward(x, { past: given }));
      given.latent.data[0]! += 1;
      expect(toFloat64(layer.forward(x, { past: given }))).not.toEqual(before);
      given.latent.data[0]! -= 1;
      given.rotaryKey.data[0]! += 1;
      expect(toFloat64(layer.forward(x, { past: given }))).not.toEqual(before);
    });
  });
  test("what stands in rows of the past that are not in use changes no bit, and has no gradient", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, ...ROWS);
      const run = (junk: number): Map<string, Float64Array> => {
        const given = past(4, [2, 4]);
        given.latent.data.fill(junk, 2 * 6, 4 * 6); // rows 2 and 3 of sequence 0
        given.rotaryKey.data.fill(junk, 2 * 2, 4 * 2);
        const pass = layer.vjp(x, { past: given });
        const found = flat(pass.backward(x));
        expect(new Set(found.get("past.latent")!.subarray(2 * 6, 4 * 6))).toEqual(new Set([0]));
        expect(new Set(found.get("past.rotaryKey")!.subarray(2 * 2, 4 * 2))).toEqual(new Set([0]));
        return found.set("output", toFloat64(pass.output));
      };
      expect(run(NaN)).toEqual(run(1));
    });
  });
  test("backward through chunks, each with the next one's gradients of its past, is that of one pass", () => {
    for (const qLoraRank of [5, null]) {
      scope(() => {
        const layer = layerIn("float64", { qLoraRank });
        const [x, d] = [random(1, 2, 7, 8), random(2, 2, 7, 8)];
        const expected = flat(layer.vjp(x).backward(d));
        const part = (t: Tensor<"float64">, from: number, to: number): Tensor<"float64"> =>
          t.slice(1, from, to) as Tensor<"float64">;
        const first = layer.vjp(part(x, 0, 3));
        const second = layer.vjp(part(x, 3, 5), { past: first.present });
        const third = layer.vjp(part(x, 5, 7), { past: second.present });
        const g3 = third.backward(part(d, 5, 7));
        const g2 = second.backward(part(d, 3, 5), g3.past);
        const g1 = first.backward(part(d, 0, 3), g2.past);
        const all = [g1, g2, g3];
        for (const key of layer.parameters.keys()) {
          const added = all.map((g) => toFloat64(g.parameters.get(key)!));
          const total = added[0]!.map((value, i) => value + added[1]![i]! + added[2]![i]!);
          assertClose(total, expected.get(key)!, { rel: 1e-11, abs: 1e-12, name: key });
        }
        const inputs = toFloat64(
          concat(
            all.map((g) => g.input),
            1,
          ),
        );
        assertClose(inputs, expected.get("input")!, { rel: 1e-11, abs: 1e-12 });
      });
    }
  });
  test("the one-step approximation stops at the past and changes nothing else", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(2, ...ROWS);
      const given = past(3);
      const run = (backpropagation: "full" | "oneStep" | undefined): Map<string, Float64Array> =>
        flat(layer.vjp(x, { past: given, backpropagation }).backward(x));
      const whole = run("full");
      expect(run(undefined)).toEqual(whole);
      for (const key of ["past.latent", "past.rotaryKey"]) {
        expect(Math.max(...whole.get(key)!.map(Math.abs))).toBeGreaterThan(0);
        whole.delete(key);
      }
      expect(run("oneStep")).toEqual(whole);
      expect(layer.vjp(x).backward(x).past).toBeUndefined();
    });
  });
  test("gradients with a past have its shapes and dtypes, and in 32 and 16 bits are those of float64", () => {
    const run = (dtype: FloatDType): Map<string, Float64Array> =>
      scope(() => {
        const own = (t: Tensor): Tensor<FloatDType> =>
          upload(
            toFloat64(t).map((x) => Math.round(16 * x) / 16),
            t.shape,
            dtype,
            engine,
          );
        const { latent, rotaryKey, lengths } = past(3, [3, 1]);
        const given = { latent: own(latent), rotaryKey: own(rotaryKey), lengths };
        const x = own(random(1, ...ROWS));
        const found = layerIn(dtype).vjp(x, { past: given }).backward(x);
        expect([found.past!.latent, found.past!.rotaryKey].map(String)).toEqual(
          [given.latent, given.rotaryKey].map(String),
        );
        return flat(found);
      });
    const expected = run("float64");
    for (const dtype of ["float32", "float16", "bfloat16"] as const) {
      for (const [key, g] of run(dtype))
        assertClose(g, expected.get(key)!, {
          rel: conformanceTolerance(dtype, "gradient"),
          name: `${dtype} ${key}`,
        });
    }
  });
  test("two sequences, two passes each before any goes backward, do not disturb one another", () => {
    scope(() => {
      const layer = layerIn("float64");
      const passes = (seed: number) => {
        const [a, b] = [random(seed, 1, 3, 8), random(seed + 1, 1, 2, 8)];
        const first = layer.vjp(a);
        return { first, second: layer.vjp(b, { past: first.present }), a, b };
      };
      const finish = ({ first, second, a, b }: ReturnType<typeof passes>): Map<string, Float64Array>[] => {
        const later = second.backward(b);
        return [flat(later), flat(first.backward(a, later.past))];
      };
      const alone = [10, 20].map((seed) => finish(passes(seed)));
      const [one, two] = [passes(10), passes(20)];
      expect([finish(two), finish(one)]).toEqual([alone[1]!, alone[0]!]);
    });
  });
  test("a pass outlives the handles of what it was given", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, ...ROWS);
      const call = (): MultiHeadLatentAttentionVjpOptions => ({
        past: { ...past(2, [2, 1]), documents: int32([0, 1, 1, 1], 2, 2) },
        documents: int32([1, 1, 2, 1, 1, 2], 2, 3),
        attnMask: random(5, 3, 5),
        attnMaskGradient: true,
      });
      const expected = flat(layer.vjp(x, call()).backward(x));
      const given = call();
      const pass = layer.vjp(x, given);
      for (const t of [given.documents, given.attnMask, ...Object.values(given.past!)])
        (t as Tensor)[Symbol.dispose]();
      expect(flat(pass.backward(x))).toEqual(expected);
    });
  });
  test("the gradient of a mask has its shape, summed over what it is broadcast along, beside documents too", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, ...ROWS);
      const base = {
        past: { ...past(2), documents: int32([0, 1, 1, 1], 2, 2) },
        documents: int32([1, 1, 2, 1, 1, 1], 2, 3),
        attnMaskGradient: true,
      };
      const mask = random(5, 1, 3, 5);
      const wide = mask.broadcastTo([2, 3, 3, 5]).contiguous();
      const narrow = layer.vjp(x, { ...base, attnMask: mask }).backward(x).attnMask!;
      const each = layer.vjp(x, { ...base, attnMask: wide }).backward(x).attnMask!;
      expect([narrow.shape, each.shape]).toEqual([
        [1, 3, 5],
        [2, 3, 3, 5],
      ]);
      const total = sum(each as Tensor<"float64">, { axes: [0, 1] });
      assertClose(toFloat64(narrow), toFloat64(total), { rel: 1e-12, abs: 1e-14 });
      expect(() => layer.vjp(x, { attnMaskGradient: true }).backward(x)).toThrow("needs a float attnMask");
    });
  });
  test("packed documents with positions of their own are those documents alone", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, 1, 6, 8);
      const documents = documentIds([[0, 2, 6]], 6, { engine });
      const packed = layer.forward(x, { documents, positions: documentPositions(documents) });
      const alone = [x.slice(1, 0, 2), x.slice(1, 2, 6)].map((t) => layer.forward(t as Tensor<"float64">));
      assertClose(toFloat64(packed), toFloat64(concat(alone, 1)), { rel: 1e-12 });
    });
  });
  test("scores are those over the past and x, in the order of the sequence", () => {
    scope(() => {
      const layer = layerIn("float64");
      const x = random(1, 1, 5, 8);
      const { present } = layer.forwardWithPresent(x.slice(1, 0, 3) as Tensor<"float64">);
      const tail = layer.scores(x.slice(1, 3) as Tensor<"float64">, { past: present });
      expect(tail.shape).toEqual([1, 3, 2, 5]);
      assertClose(toFloat64(tail), toFloat64(layer.scores(x).slice(2, 3)), { rel: 1e-12 });
      const raw = layer.scores(x, { stage: "raw" });
      expect(toFloat64(raw)).not.toEqual(toFloat64(layer.scores(x)));
    });
  });
  test("nothing is left when passes, presents and gradients are disposed, and the past stays the caller's", () => {
    using layer = MultiHeadLatentAttention.create({ ...SMALL, engine });
    using x = zeros(ROWS, { engine });
    layer.forward(x, { positions: 60 })[Symbol.dispose](); // the rotation's tables
    const before = memoryUsage();
    using leaks = trackLeaks();
    {
      using latent = zeros([2, 4, 6], { engine });
      using rotaryKey = zeros([2, 4, 2], { engine });
      using lengths = int32([4, 1], 2);
      using documents = int32([0, 0, 0, 0, 1, 1], 2, 3);
      using others = int32([0, 0, 0, 0, 1, 1, 1, 1], 2, 4);
      using attnMask = zeros([3, 7], { engine });
      const call = { past: { latent, rotaryKey, lengths, documents: others }, documents, attnMask };
      using pass = layer.vjp(x, { ...call, attnMaskGradient: true });
      using _output = pass.output;
      using _gradients = pass.backward(pass.output);
      const { output, present } = layer.forwardWithPresent(x, call);
      for (const t of [output, ...Object.values(present)]) t[Symbol.dispose]();
      layer.scores(x, call)[Symbol.dispose]();
      expect([latent.disposed, rotaryKey.disposed, lengths.disposed]).toEqual([false, false, false]);
    }
    expect(leaks.report()).toEqual([]);
    expect(memoryUsage().storages).toBe(before.storages);
    expect(memoryUsage().bytes).toBe(before.bytes);
  });
  test("a past or documents that do not fit are typed errors that name them", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...SMALL, engine });
      const x = zeros(ROWS, { engine });
      const rows = (...shape: number[]): Tensor<"float32"> => zeros(shape, { engine });
      const good = { latent: rows(2, 4, 6), rotaryKey: rows(2, 4, 2) };
      type Case = [MultiHeadLatentAttentionInputs, string, typeof ArgumentError];
      const cases: Case[] = [
        [
          { past: { ...good, latent: rows(2, 4, 5) } },
          "past.latent must be [B, P, R] = [2, 4, 6]",
          ShapeError,
        ],
        [
          { past: { ...good, latent: rows(1, 4, 6) } },
          "past.latent must be [B, P, R] = [2, 4, 6]",
          ShapeError,
        ],
        [{ past: { ...good, latent: rows(6) } }, "past.latent must be", ShapeError],
        [
          { past: { ...good, rotaryKey: rows(2, 3, 2) } },
          "past.rotaryKey must be [B, P, Dr] = [2, 4, 2]",
          ShapeError,
        ],
        [{ past: { ...good, latent: zeros([2, 4, 6], on) } }, "past.latent must have x's dtype", DTypeError],
        [
          { past: { ...good, rotaryKey: zeros([2, 4, 2], on) } },
          "past.rotaryKey must have x's dtype",
          DTypeError,
        ],
        [
          { past: { ...good, lengths: int32([1, 5], 2) } },
          "past.lengths[1] must be from 0 to 4; got 5",
          ArgumentError,
        ],
        [{ past: { ...good, lengths: int32([1], 1) } }, "past.lengths must be [B] = [2]", ShapeError],
        [{ past: { ...good, lengths: rows(2) as never } }, "past.lengths must be int32", DTypeError],
        [
          { past: good, kvLengths: int32([4, 1], 2) },
          "kvLengths[0] must be from 0 to 3; got 4",
          ArgumentError,
        ],
        [{ past: good, attnMask: rows(3, 3) }, "attnMask", ShapeError],
        [{ past: good, documents: int32([0, 0, 0, 0, 0, 0], 2, 3) }, "need past.documents", ArgumentError],
        [
          { past: { ...good, documents: int32([0, 0, 0, 0, 0, 0, 0, 0], 2, 4) } },
          "past.documents needs documents",
          ArgumentError,
        ],
        [
          {
            past: { ...good, documents: int32([0, 0, 0], 1, 3) },
            documents: int32([0, 0, 0, 0, 0, 0], 2, 3),
          },
          "past.documents must be [B, P] = [2, 4]",
          ShapeError,
        ],
        [{ documents: int32([0, 0, 0], 3) }, "documents must be [B, S] = [2, 3]", ShapeError],
        [{ documents: rows(2, 3) as never }, "documents must be int32", DTypeError],
      ];
      layer.forward(x, { positions: 60 }); // the rotation's tables
      const before = memoryUsage().storages;
      for (const [options, message, kind] of cases) {
        for (const call of [layer.forward, layer.forwardWithPresent, layer.vjp, layer.scores]) {
          const run = (): unknown => (call as typeof layer.forward).call(layer, x, options);
          expect(run).toThrow(message);
          expect(run).toThrow(kind);
        }
      }
      expect(memoryUsage().storages).toBe(before);
      expect(() => layer.vjp(x, { backpropagation: "half" as never })).toThrow(
        'must be "full" or "oneStep"; got half',
      );
      const pass = layer.vjp(x, { past: good });
      expect(() => pass.backward(x, good)).toThrow(
        "dPresent.latent must be float32[2, 7, 6], as present; got float32[2, 4, 6]",
      );
    });
  });
});
