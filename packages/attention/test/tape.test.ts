import "@heed/engine-cpu";
import {
  ArgumentError,
  type BlockTableReader,
  copyInto,
  type Engine,
  fill,
  type FloatDType,
  getEngine,
  memoryUsage,
  recordTape,
  resetPeakMemory,
  scope,
  type Tape,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { KvCache, type KvCacheOptions, type StepRequest } from "@heed/kvcache";
import { floatView, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import {
  AttentionHead,
  GlobalAttention,
  GroupedQueryAttention,
  type InitOptions,
  type LayerVjp,
  LocalAttention,
  MultiHeadLatentAttention,
  type RopeScaling,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

type F = Tensor<"float32">;
/** A layer over a cache, as all of ours are. */
interface Cached {
  forward(x: F, options?: { readonly cache?: BlockTableReader }): F;
  vjp(x: F): LayerVjp<"float32">;
}
interface Kind {
  readonly make: (init: InitOptions) => Cached;
  readonly layout: Pick<KvCacheOptions, "numKvHeads" | "headDim" | "valueHeadDim" | "valuesInKeys">;
}
const HIDDEN = 12;
const HEADS = { hiddenSize: HIDDEN, numHeads: 6, numKvHeads: 2, headDim: 4 } as const;
const LATENT = {
  numHeads: 3,
  qLoraRank: 7,
  kvLoraRank: 10,
  qkNopeHeadDim: 5,
  qkRopeHeadDim: 4,
  vHeadDim: 6,
} as const;
const PAGES = { numKvHeads: 2, headDim: 4 } as const;
const KINDS: Readonly<Record<string, Kind>> = {
  "GroupedQueryAttention, plain": {
    make: (o) => GroupedQueryAttention.create({ ...HEADS, ...o }),
    layout: PAGES,
  },
  "GroupedQueryAttention, normalised, rotated, windowed, with sinks": {
    make: (o) =>
      GroupedQueryAttention.create({
        ...HEADS,
        rope: {},
        qkNorm: {},
        sinks: true,
        window: { left: 9 },
        bias: true,
        ...o,
      }),
    layout: PAGES,
  },
  GlobalAttention: { make: (o) => GlobalAttention.create({ ...HEADS, rope: {}, ...o }), layout: PAGES },
  LocalAttention: {
    make: (o) => LocalAttention.create({ ...HEADS, rope: {}, windowSize: 6, ...o }),
    layout: PAGES,
  },
  MultiHeadLatentAttention: {
    make: (o) => MultiHeadLatentAttention.create({ hiddenSize: HIDDEN, ...LATENT, ...o }),
    layout: { numKvHeads: 1, headDim: 14, valueHeadDim: 10, valuesInKeys: true },
  },
};
const DTYPES = ["float32", "float64", "bfloat16", "float16"] as const;

const bits = (t: Tensor): Uint8Array =>
  scope(() => {
    const { data } = t.contiguous();
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  });
const rows = (engine: Engine, dtype: FloatDType, shape: number[], seed: number): F =>
  upload(createRng(seed).normalArray(shape.reduce((n, x) => n * x, 1)), shape, dtype, engine) as Tensor as F;
const renew = (x: F, seed: number): void =>
  scope(() => copyInto(rows(x.engine, x.dtype, [...x.shape], seed), x));

/** Calls of engine.alloc while `fn` runs. */
function allocations(engine: Engine, fn: () => void): number {
  const { alloc } = engine;
  let calls = 0;
  engine.alloc = (bytes) => {
    calls++;
    return alloc.call(engine, bytes);
  };
  fn();
  engine.alloc = alloc;
  return calls;
}
/** Makes the pages of two caches comparable: memory is not cleared. */
function clearPages(cache: KvCache): void {
  using step = cache.reserve([]);
  const { kPages, vPages } = floatView(step.view(0));
  for (const pages of [kPages, vPages]) fill(pages, 0);
}
/** Decodes 20 tokens of two sequences with a tape and plainly, in two caches, and expects the same bits in outputs and pages. */
function decodeTwice({ make, layout }: Kind, dtype: FloatDType, engine: Engine): void {
  const layer = make({ engine, dtype, seed: 3 });
  const options = { layers: 1, ...layout, pageSize: 4, maxPages: 24, dtype, engine };
  using plain = new KvCache(options);
  using taped = new KvCache(options);
  using table = taped.fixedTable({ sequences: 2 });
  const sequences = [plain, taped].map((cache) => [cache.open(), cache.open()]);
  const requests = (c: number, tokens: (i: number) => number): StepRequest[] =>
    sequences[c]!.map((sequence, i) => ({ sequence, tokens: tokens(i) }));
  // Sequences of different lengths, so that their positions and pages differ.
  [plain, taped].forEach((cache, c) => {
    clearPages(cache);
    using step = cache.reserve(requests(c, (i) => 3 + 4 * i));
    scope(() => layer.forward(rows(engine, dtype, [10, HIDDEN], 1), { cache: step }));
    step.commit();
  });
  const x = rows(engine, dtype, [2, 1, HIDDEN], 2);
  let recorded: ReturnType<typeof recordTape<F>> | undefined;
  for (let t = 0; t < 20; t++) {
    renew(x, 100 + t);
    using step = taped.reserve(
      requests(1, () => 1),
      { table },
    );
    if (recorded === undefined) recorded = recordTape(engine, () => layer.forward(x, { cache: step }));
    else {
      recorded.tape.replay();
      step.markWritten();
    }
    using eager = plain.reserve(requests(0, () => 1));
    expect(bits(recorded.outputs)).toEqual(scope(() => bits(layer.forward(x, { cache: eager }))));
    for (const part of ["kPages", "vPages"] as const)
      expect(bits(floatView(step.view(0))[part])).toEqual(bits(floatView(eager.view(0))[part]));
    step.commit();
    eager.commit();
  }
  expect(sequences[1]!.map((s) => s.length)).toEqual([23, 27]);
  taped.check();
}

describe.each(engines)("a tape on %s", (name) => {
  const engine = getEngine(name);
  /** A test for engines whose kernels run a decode step: composed forms have temporaries, see TapeInstruction.kind. */
  const withKernels = (title: string, fn: () => void): void => {
    if (engine.fused.pagedAttention !== undefined) test(title, fn);
  };
  const layerOf = (kind: string, dtype: FloatDType): Cached => KINDS[kind]!.make({ engine, dtype, seed: 3 });

  describe.each(Object.keys(KINDS))("of %s", (kind) => {
    test.each(DTYPES)("a replayed forward gives the bits of a plain one: %s", (dtype) => {
      scope(() => {
        const layer = layerOf(kind, dtype);
        const x = rows(engine, dtype, [2, 5, HIDDEN], 1);
        const { outputs, tape } = recordTape(engine, () => layer.forward(x));
        for (const seed of [2, 3]) {
          renew(x, seed);
          tape.replay();
          expect(bits(outputs)).toEqual(scope(() => bits(layer.forward(x))));
        }
      });
    });
    test.each(DTYPES)("20 replayed decode steps give the bits of plain ones: %s", (dtype) => {
      scope(() => decodeTwice(KINDS[kind]!, dtype, engine));
    });
    test("a replayed forward and backward give the gradients of plain ones, bit for bit", () => {
      scope(() => {
        const layer = layerOf(kind, "float32");
        const [x, dOut] = [1, 2].map((seed) => rows(engine, "float32", [2, 5, HIDDEN], seed)) as [F, F];
        const train = (): Map<string, Tensor> => {
          const { input, parameters } = layer.vjp(x).backward(dOut);
          return new Map([["input", input], ...parameters]);
        };
        const { outputs, tape } = recordTape(engine, train);
        [x, dOut].forEach((t, i) => renew(t, 7 + i));
        tape.replay();
        const expected = train();
        expect(outputs.size).toBe(expected.size);
        for (const [key, gradient] of outputs) expect(bits(gradient)).toEqual(bits(expected.get(key)!));
      });
    });
    withKernels("a replayed decode step takes no memory of the engine", () => {
      scope(() => {
        const layer = layerOf(kind, "float32");
        using cache = new KvCache({ layers: 1, ...KINDS[kind]!.layout, pageSize: 4, maxPages: 20, engine });
        using table = cache.fixedTable({ sequences: 1 });
        const requests = [{ sequence: cache.open(), tokens: 1 }];
        const x = rows(engine, "float32", [1, 1, HIDDEN], 1);
        const step = cache.reserve(requests, { table });
        const { tape } = recordTape(engine, () => layer.forward(x, { cache: step }));
        expect(tape.instructions.some((i) => i.kind === "composed")).toBe(false);
        step.commit();
        for (let t = 0; t < 30; t++) {
          using next = cache.reserve(requests, { table });
          resetPeakMemory();
          const before = memoryUsage();
          expect(allocations(engine, () => tape.replay())).toBe(0);
          expect(memoryUsage()).toEqual(before);
          next.markWritten();
          next.commit();
        }
      });
    });
  });
  withKernels("the instructions of a decode step are the operations of the layer, in order", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...HEADS, rope: {}, engine });
      using cache = new KvCache({ layers: 1, ...PAGES, maxPages: 2, engine });
      using step = cache.reserve([{ sequence: cache.open(), tokens: 1 }]);
      const x = rows(engine, "float32", [1, HIDDEN], 1);
      const { tape } = recordTape(engine, () => layer.forward(x, { cache: step }));
      const names = tape.instructions.map((i) => i.name);
      expect(names).toEqual(["linear", "normRopeAppend", "pagedAttention", "linear"]);
      const append = tape.instructions[1]!;
      expect(append.operands.map((o) => o.name)).toEqual(
        "q k v kPages vPages slots rope.cos rope.sin rope.positions out".split(" "),
      );
      expect(append.operands[3]).toEqual({ name: "kPages", dtype: "float32", shape: [3, 2, 64, 4] });
    });
  });
  test("a head replays", () => {
    scope(() => {
      const layer = AttentionHead.create({ hiddenSize: HIDDEN, headDim: 4, engine });
      const x = rows(engine, "float32", [2, 5, HIDDEN], 1);
      const { outputs, tape } = recordTape(engine, () => layer.forward(x));
      renew(x, 2);
      tape.replay();
      expect(bits(outputs)).toEqual(bits(layer.forward(x)));
    });
  });
  describe("of a rotation at new positions", () => {
    const SCALINGS: Readonly<Record<string, RopeScaling>> = {
      dynamic: { type: "dynamic", factor: 2, originalMaxPositions: 8 },
      longrope: {
        type: "longrope",
        shortFactor: [1, 1.5],
        longFactor: [2, 4],
        originalMaxPositions: 8,
        factor: 4,
      },
    };
    const setUp = (
      scaling?: RopeScaling,
    ): { layer: GroupedQueryAttention; x: F; positions: Tensor<"int32"> } => ({
      layer: GroupedQueryAttention.create({
        ...HEADS,
        rope: scaling === undefined ? {} : { scaling },
        engine,
      }),
      x: rows(engine, "float32", [1, 1, HIDDEN], 1),
      positions: tensor([0], [1], { engine, dtype: "int32" }),
    });
    test("a position beyond the tables is an error; tables made before the recording serve it", () => {
      scope(() => {
        const { layer, x, positions } = setUp();
        const record = (): Tape => recordTape(engine, () => layer.forward(x, { positions })).tape;
        const short = record();
        fill(positions, 300);
        expect(() => short.replay()).toThrow("position 300 is outside the tables of 256 rows");
        layer.forward(x, { positions: 300 });
        fill(positions, 0);
        const long = record();
        fill(positions, 300);
        long.replay();
      });
    });
    test.each(Object.keys(SCALINGS))(
      "frequencies that go by the length bind the tape to them: %s",
      (kind) => {
        scope(() => {
          const { layer, x, positions } = setUp(SCALINGS[kind]);
          const { outputs, tape } = recordTape(engine, () => layer.forward(x, { positions }));
          fill(positions, 5);
          tape.replay();
          expect(bits(outputs)).toEqual(bits(layer.forward(x, { positions })));
          fill(positions, 20);
          expect(() => tape.replay()).toThrow(ArgumentError);
          const long = recordTape(engine, () => layer.forward(x, { positions }));
          long.tape.replay();
          expect(bits(long.outputs)).toEqual(bits(layer.forward(x, { positions })));
          fill(positions, 0);
          expect(() => long.tape.replay()).toThrow("record again");
        });
      },
    );
  });
});
