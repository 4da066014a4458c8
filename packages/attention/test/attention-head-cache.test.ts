/** AttentionHead and the tokens before its own: given keys and values, and a paged cache. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import {
  ArgumentError,
  concat,
  copyInto,
  DTypeError,
  getEngine,
  memoryUsage,
  recordTape,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { assertClose, checkDirectionalGradient, checkGradient, createRng, dotProduct } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { AttentionHead, type AttentionHeadVjpOptions, type KeysValuesGradients } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 6;
const D = 4;
const SIZES = { hiddenSize: HIDDEN, headDim: D, bias: true } as const;

describe.each(engines)("AttentionHead after earlier tokens on %s", (name) => {
  const engine = getEngine(name);
  type F = Tensor<"float64">;
  const on = (values: Float64Array, ...shape: number[]): F => upload(values, shape, "float64", engine);
  const random = (seed: number, ...shape: number[]): F =>
    on(createRng(seed).normalArray(shape.reduce((n, d) => n * d, 1)), ...shape);
  const int32 = (...values: number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });
  /** Weights of unit scale. */
  function headOf(
    options: Partial<{ isCausal: boolean; layerIndex: number; seed: number }> = {},
  ): AttentionHead {
    const { seed = 1, ...rest } = options;
    const head = AttentionHead.create({ ...SIZES, ...rest, engine, dtype: "float64" });
    [...head.parameters.values()].forEach((t, i) => copyInto(random(10 * seed + i, ...t.shape), t));
    return head;
  }

  test("gradients of x, the parameters and the past are those of central differences, for any options", () => {
    const cases = fc.record({
      isCausal: fc.boolean(),
      P: fc.integer({ min: 1, max: 4 }),
      S: fc.integer({ min: 1, max: 4 }),
      lengths: fc.option(fc.tuple(fc.nat({ max: 4 }), fc.nat({ max: 4 })), { nil: undefined }),
      used: fc.option(fc.tuple(fc.nat({ max: 4 }), fc.nat({ max: 4 })), { nil: undefined }),
      mask: fc.boolean(),
      dropout: fc.boolean(),
      seed: fc.nat({ max: 0xffff }),
    });
    fc.assert(
      fc.property(cases, ({ isCausal, P, S, lengths, used, mask, dropout, seed }) =>
        scope(() => {
          const head = headOf({ isCausal, seed: 1 + (seed % 90) });
          const [x, k, v, dOut] = [
            random(seed, 2, S, HIDDEN),
            random(seed + 1, 2, P, 1, D),
            random(seed + 2, 2, P, 1, D),
            random(seed + 3, 2, S, D),
          ];
          const upstream = toFloat64(dOut);
          const call = (past: { k: F; v: F }): AttentionHeadVjpOptions => ({
            past: { ...past, ...(lengths && { lengths: int32(...lengths.map((n) => Math.min(n, P))) }) },
            ...(used && { kvLengths: int32(...used.map((n) => Math.min(n, S))) }),
            ...(mask && { attnMask: random(seed + 4, 2, 1, S, P + S) }),
            ...(dropout && { dropout: { probability: 0.3, seed: 7 } }),
          });
          const found = head.vjp(x, call({ k, v })).backward(dOut);
          const loss = (given: { x?: F; k?: F; v?: F }): number =>
            scope(() => {
              const y = head.forward(given.x ?? x, call({ k: given.k ?? k, v: given.v ?? v }));
              return dotProduct(toFloat64(y), upstream);
            });
          const within = { h: 2 ** -12, rel: 1e-7, abs: 1e-7 };
          const check = (what: "x" | "k" | "v", at: F, gradient: Tensor): void => {
            expect(gradient.shape).toEqual(at.shape);
            const f = (moved: Float64Array): number => loss({ [what]: on(moved, ...at.shape) });
            checkDirectionalGradient(f, toFloat64(at), toFloat64(gradient), { ...within, name: what });
          };
          check("x", x, found.input);
          check("k", k, found.past!.k);
          check("v", v, found.past!.v);
          for (const [key, weight] of head.parameters) {
            const at = toFloat64(weight);
            const f = (moved: Float64Array): number => {
              copyInto(on(moved, ...weight.shape), weight);
              return loss({});
            };
            const gradient = toFloat64(found.parameters.get(key)!);
            checkDirectionalGradient(f, at, gradient, { ...within, name: key });
            copyInto(on(at, ...weight.shape), weight);
          }
        }),
      ),
      { numRuns: 12 },
    );
  });
  test("a mask's columns count the past first, whatever its length", () => {
    scope(() => {
      const head = headOf();
      const [x, mask] = [random(1, 1, 5, HIDDEN), random(2, 1, 1, 5, 5)];
      const whole = toFloat64(head.forward(x, { attnMask: mask }).slice(1, 3));
      const { present } = head.forwardWithPresent(x.slice(1, 0, 3), {
        attnMask: mask.slice(2, 0, 3).slice(3, 0, 3),
      });
      const rest = x.slice(1, 3);
      const exact = head.forward(rest, { past: present, attnMask: mask.slice(2, 3) });
      assertClose(toFloat64(exact), whole, { rel: 1e-12 });
      // Two rows of the past that are not in use: the mask has columns for them at the end.
      const more = (t: F): F => concat([t, on(new Float64Array(8).fill(NaN), 1, 2, 1, D)], 1);
      const roomy = { k: more(present.k), v: more(present.v), lengths: int32(3) };
      const wide = concat([mask.slice(2, 3), random(3, 1, 1, 2, 2)], 3);
      const found = head.forward(rest, { past: roomy, attnMask: wide });
      assertClose(toFloat64(found), whole, { rel: 1e-12 });
    });
  });
  test("the gradient of a mask has its shape and is that of central differences, whatever becomes of the mask", () => {
    scope(() => {
      const head = headOf();
      const [x, d] = [random(1, 2, 3, HIDDEN), random(2, 2, 3, D)];
      const past = { k: random(3, 2, 2, 1, D), v: random(4, 2, 2, 1, D), lengths: int32(1, 2) };
      const values = createRng(5).normalArray(15);
      const attnMask = on(values, 3, 5); // both sequences share it
      const pass = head.vjp(x, { past, attnMask, attnMaskGradient: true });
      attnMask[Symbol.dispose]();
      const { attnMask: found, past: dPast } = pass.backward(d);
      expect([found!.shape, dPast!.k.shape]).toEqual([
        [3, 5],
        [2, 2, 1, D],
      ]);
      const objective = (moved: Float64Array): number =>
        scope(() =>
          dotProduct(toFloat64(d), toFloat64(head.forward(x, { past, attnMask: on(moved, 3, 5) }))),
        );
      checkGradient(objective, values, toFloat64(found!), { h: 2 ** -12, rel: 1e-7, abs: 1e-7 });
      const plain = head.vjp(x, { past, attnMask: on(values, 3, 5) }).backward(d);
      expect(plain.attnMask).toBeUndefined();
      expect(() => head.vjp(x, { attnMaskGradient: true }).backward(d)).toThrow("needs a float attnMask");
    });
  });
  test("full backpropagation through every step's past gives the gradients of one pass; one step stops at it", () => {
    scope(() => {
      const head = headOf();
      const [x, dOut] = [random(1, 2, 7, HIDDEN), random(2, 2, 7, D)];
      const whole = head.vjp(x).backward(dOut);
      const cuts = [0, 3, 4, 7];
      const part = (t: F, i: number): F => t.slice(1, cuts[i]!, cuts[i + 1]!);
      const passes: ReturnType<typeof head.vjp<"float64">>[] = [];
      for (let i = 0; i < 3; i++) {
        const past = passes[i - 1]?.present;
        passes.push(head.vjp(part(x, i), past && { past }));
      }
      let dPresent: KeysValuesGradients<"float64"> | undefined;
      const steps = [2, 1, 0].map((i) => {
        const found = passes[i]!.backward(part(dOut, i), dPresent);
        dPresent = found.past;
        return found;
      });
      expect(steps.map((s) => s.past !== undefined)).toEqual([true, true, false]);
      assertClose(
        toFloat64(
          concat(
            [2, 1, 0].map((i) => steps[i]!.input),
            1,
          ),
        ),
        toFloat64(whole.input),
        {
          rel: 1e-12,
        },
      );
      for (const [key, t] of whole.parameters) {
        const total = new Float64Array(t.size);
        for (const { parameters } of steps)
          toFloat64(parameters.get(key)!).forEach((g, i) => (total[i]! += g));
        assertClose(total, toFloat64(t), { rel: 1e-12, abs: 1e-13, name: key });
      }
      const last = { past: passes[1]!.present };
      const [full, one] = (["full", "oneStep"] as const).map((backpropagation) =>
        head.vjp(part(x, 2), { ...last, backpropagation }).backward(part(dOut, 2)),
      );
      expect(one!.past).toBeUndefined();
      expect(toFloat64(one!.input)).toEqual(toFloat64(full!.input));
    });
  });
  test("two sequences interleaved, two passes each before any goes backward, do not disturb one another", () => {
    scope(() => {
      const head = headOf();
      const sequence = (seed: number): (() => void)[] & { found?: Float64Array[] } => {
        const [first, second] = [random(seed, 1, 3, HIDDEN), random(seed + 1, 1, 2, HIDDEN)];
        const d = random(seed + 2, 1, 2, D);
        let a: ReturnType<typeof head.vjp<"float64">>;
        let b: ReturnType<typeof head.vjp<"float64">>;
        const steps: (() => void)[] & { found?: Float64Array[] } = [
          () => (a = head.vjp(first)),
          () => (b = head.vjp(second, { past: a.present })),
          () => {
            const last = b.backward(d);
            const early = a.backward(zeros([1, 3, D], { engine, dtype: "float64" }), last.past);
            steps.found = [last.input, early.input, ...early.parameters.values()].map(toFloat64);
          },
        ];
        return steps;
      };
      const alone = [1, 50].map((seed) => {
        const steps = sequence(seed);
        steps.forEach((step) => step());
        return steps.found;
      });
      const together = [1, 50].map(sequence);
      for (let i = 0; i < 3; i++) together.forEach((steps) => steps[i]!());
      expect(together.map((steps) => steps.found)).toEqual(alone);
      expect(alone[0]).not.toEqual(alone[1]);
    });
  });
  test("heads of one cache write and read their own layer, and a recorded decode step replays", () => {
    scope(() => {
      const cache = new KvCache({
        layers: 2,
        numKvHeads: 1,
        headDim: D,
        pageSize: 4,
        maxPages: 8,
        dtype: "float64",
        engine,
      });
      const table = cache.fixedTable({ sequences: 1 });
      const heads = [0, 1].map((layerIndex) => headOf({ layerIndex, seed: 1 + layerIndex }));
      expect(heads.map((head) => head.attributes().layerIndex)).toEqual([0, 1]);
      const requests = [{ sequence: cache.open(), tokens: 1 }];
      const x = random(3, 1, 1, HIDDEN);
      const all = Array.from({ length: 9 }, (_, t) => random(20 + t, 1, 1, HIDDEN));
      const run = (step: ReturnType<typeof cache.reserve>): F[] =>
        heads.map((head) => head.forward(x, { cache: step }));
      let recorded: ReturnType<typeof recordTape<F[]>> | undefined;
      const found: Float64Array[][] = [];
      for (const token of all) {
        copyInto(token, x);
        const step = cache.reserve(requests, { table });
        if (recorded === undefined) recorded = recordTape(engine, () => run(step));
        else {
          recorded.tape.replay();
          step.markWritten();
        }
        found.push(recorded.outputs.map(toFloat64));
        step.commit();
      }
      heads.forEach((head, i) => {
        const expected = toFloat64(head.forward(concat(all, 1)));
        const y = Float64Array.from(found.flatMap((values) => [...values[i]!]));
        assertClose(y, expected, { rel: 1e-12, name: `layer ${i}` });
      });
      recorded!.tape[Symbol.dispose]();
      cache[Symbol.dispose]();
    });
  });
  test("nothing is left when passes, presents and gradients are disposed, and the past stays the caller's", () => {
    using head = AttentionHead.create({ ...SIZES, engine, dtype: "float64" });
    const before = memoryUsage();
    {
      using k = random(1, 2, 3, 1, D);
      using v = random(2, 2, 3, 1, D);
      using lengths = int32(1, 3);
      using x = random(3, 2, 2, HIDDEN);
      using pass = head.vjp(x, { past: { k, v, lengths } });
      using output = pass.output;
      using _gradients = pass.backward(output);
      const { output: y, present } = head.forwardWithPresent(x, { past: { k, v } });
      [y, present.k, present.v].forEach((t) => t[Symbol.dispose]());
      pass[Symbol.dispose]();
      expect(k.disposed || v.disposed || lengths.disposed).toBe(false);
    }
    expect(memoryUsage().storages).toBe(before.storages);
  });
  test("a past, a cache or a mode that does not fit is a typed error that names it", () => {
    scope(() => {
      const head = headOf();
      const x = random(1, 2, 3, HIDDEN);
      const [k, v] = [random(2, 2, 3, 1, D), random(3, 2, 3, 1, D)];
      const run = (options: object) => (): unknown => head.forward(x, options);
      expect(run({ past: { k, v: random(3, 2, 2, 1, D) } })).toThrow(
        "past.v must be [B, P, Hkv, D] = [2, 3, 1, 4]",
      );
      expect(run({ past: { k: random(3, 2, 3, 2, D), v } })).toThrow(ShapeError);
      const narrow = upload(new Float64Array(24), [2, 3, 1, D], "float32", engine);
      expect(run({ past: { k, v: narrow } })).toThrow(DTypeError);
      expect(run({ past: { k, v, lengths: int32(1, 4) } })).toThrow(
        "past.lengths[1] must be from 0 to 3; got 4",
      );
      expect(run({ past: { k, v, documents: int32(1) } })).toThrow("past.documents");
      expect(run({ kvLengths: int32(4, 1) })).toThrow("kvLengths[0] must be from 0 to 3; got 4");
      using cache = new KvCache({
        layers: 1,
        numKvHeads: 1,
        headDim: D,
        maxPages: 2,
        dtype: "float64",
        engine,
      });
      using step = cache.reserve([{ sequence: cache.open(), tokens: 6 }]);
      for (const given of [
        { past: { k, v } },
        { kvLengths: int32(3, 3) },
        { dropout: { probability: 0, seed: 1 } },
      ])
        expect(run({ cache: step, ...given })).toThrow("and cache exclude each other");
      expect(() => head.forward(random(1, 5, HIDDEN), { cache: step })).toThrow("x must hold the 6 tokens");
      expect(() => head.forward(random(1, 6, HIDDEN))).toThrow(ShapeError);
      for (const method of ["vjp", "forwardWithPresent"] as const)
        expect(() => head[method](x, { cache: step } as object)).toThrow(`${method} takes no cache`);
      expect(() => head.vjp(x, { backpropagation: "half" as "full" })).toThrow(ArgumentError);
      const pass = head.vjp(x);
      expect(() => pass.backward(pass.output, { k, v: random(1, 2, 4, 1, D) })).toThrow(
        "[AttentionHead] dPresent.v must be",
      );
      expect(() => headOf({ layerIndex: -1 })).toThrow("layerIndex must be a whole number");
      head.forward(x, { cache: step });
    });
  });
});
