/** Layers on a device whose memory the host does not see: what they compute on the host, and decode steps as one graph. */
import { floorReason } from "@heed/engine-cpu";
import "@heed/engine-cuda";
import { KvCache, type KvCacheOptions } from "@heed/kvcache";
import {
  type BlockTableReader,
  copyInto,
  DeviceError,
  getEngine,
  type Recorded,
  recordTape,
  scope,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import {
  documentIds,
  documentPositions,
  GroupedQueryAttention,
  type InitOptions,
  type LayerVjp,
  LocalAttention,
  MultiHeadLatentAttention,
  RotaryEmbedding,
} from "../src/index.ts";

const DEVICE = "cuda-emulated";
const BOTH = ["cpu", DEVICE] as const;
type F = Tensor<"float32">;
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
const PAGES = { numKvHeads: 2, headDim: 4 } as const;
const KINDS: Readonly<Record<string, Kind>> = {
  "grouped queries, normalised, rotated, with sinks": {
    make: (o) =>
      GroupedQueryAttention.create({ ...HEADS, rope: {}, qkNorm: {}, sinks: true, bias: true, ...o }),
    layout: PAGES,
  },
  "a window": {
    make: (o) => LocalAttention.create({ ...HEADS, rope: {}, windowSize: 4, ...o }),
    layout: PAGES,
  },
  "latent attention": {
    make: (o) =>
      MultiHeadLatentAttention.create({
        hiddenSize: HIDDEN,
        numHeads: 3,
        qLoraRank: 7,
        kvLoraRank: 10,
        qkNopeHeadDim: 5,
        qkRopeHeadDim: 4,
        vHeadDim: 6,
        ...o,
      }),
    layout: { numKvHeads: 1, headDim: 14, valueHeadDim: 10, valuesInKeys: true },
  },
};
const rows = (engine: string, shape: readonly number[], seed: number): F => {
  const values = createRng(seed).normalArray(shape.reduce((n, d) => n * d, 1));
  return tensor(Float32Array.from(values), shape, { engine });
};
function close(got: Float32Array, wanted: Float32Array, name: string): void {
  assertClose(got, wanted, { rel: 1e-4, abs: 1e-5, name, shape: [got.length] });
}

describe.skipIf(!floorReason.startsWith("native"))("on a device", () => {
  test.each(Object.keys(KINDS))("forward and gradients are those of the host: %s", async (kind) => {
    const seen = await Promise.all(
      BOTH.map(async (engine) => {
        const { outputs, gradients } = scope(() => {
          const layer = KINDS[kind]!.make({ engine, seed: 3 });
          const pass = layer.vjp(rows(engine, [2, 5, HIDDEN], 1));
          const { input, parameters } = pass.backward(rows(engine, [2, 5, HIDDEN], 2));
          return { outputs: pass.output, gradients: { input, ...Object.fromEntries(parameters) } };
        });
        const read: Record<string, Float32Array> = { output: (await outputs.read()) as Float32Array };
        for (const [name, t] of Object.entries(gradients)) read[name] = (await t.read()) as Float32Array;
        return read;
      }),
    );
    expect(Object.keys(seen[1]!)).toEqual(Object.keys(seen[0]!));
    for (const [name, wanted] of Object.entries(seen[0]!)) close(seen[1]![name]!, wanted, name);
  });
  test.each(Object.keys(KINDS))(
    "decode over a cache is that of the host, and a tape of it one graph: %s",
    async (kind) => {
      const { make, layout } = KINDS[kind]!;
      const decode = async (name: string, taped: boolean): Promise<Float32Array[]> => {
        const engine = getEngine(name);
        const layer = make({ engine, seed: 3 });
        using cache = new KvCache({ layers: 1, ...layout, pageSize: 4, maxPages: 12, engine });
        using table = cache.fixedTable({ sequences: 2, pages: 8 });
        const sequences = [cache.open(), cache.open()];
        {
          using step = cache.reserve(sequences.map((sequence, i) => ({ sequence, tokens: 2 + 3 * i })));
          scope(() => layer.forward(rows(name, [7, HIDDEN], 1), { cache: step }));
          step.commit();
        }
        const x = rows(name, [2, 1, HIDDEN], 2);
        let recorded: Recorded<F> | undefined;
        const outputs: Float32Array[] = [];
        for (let t = 0; t < 5; t++) {
          scope(() => copyInto(rows(name, [2, 1, HIDDEN], 100 + t), x));
          using step = cache.reserve(
            sequences.map((sequence) => ({ sequence, tokens: 1 })),
            { table },
          );
          if (!taped) {
            using out = scope(() => layer.forward(x, { cache: step }));
            outputs.push(await out.read());
          } else if (recorded === undefined) {
            recorded = recordTape(engine, () => layer.forward(x, { cache: step }));
            outputs.push(await recorded.outputs.read());
          } else {
            recorded.tape.replay();
            step.markWritten();
            expect(recorded.tape.isCaptured).toBe(name === DEVICE);
            outputs.push(await recorded.outputs.read());
          }
          step.commit();
        }
        cache.check();
        recorded?.tape[Symbol.dispose]();
        return outputs;
      };
      const [wanted, plain, taped] = [
        await decode("cpu", false),
        await decode(DEVICE, false),
        await decode(DEVICE, true),
      ];
      plain.forEach((out, t) => close(out, wanted[t]!, `step ${t}`));
      expect(taped).toEqual(plain);
      expect(new Set(plain.map((out) => out[0])).size).toBe(plain.length);
    },
  );
  test("documents start their positions anew", async () => {
    for (const [values, shape] of [
      [
        [4, 4, 7, 7, 7, 7, 4, 4, 4, 7],
        [2, 5],
      ],
      [[3], [1, 1]],
      [[], [0, 4]],
      [[], [2, 0]],
    ] as const) {
      const read = BOTH.map(async (engine) => {
        using ids = tensor(Int32Array.from(values), [...shape], { dtype: "int32", engine });
        using positions = documentPositions(ids);
        return [positions.shape, [...(await positions.read())]];
      });
      const [host, device] = await Promise.all(read);
      expect(device).toEqual(host!);
    }
    using packed = documentIds([[0, 2, 5]], 6, { engine: DEVICE });
    using positions = documentPositions(packed);
    expect([...(await positions.read())]).toEqual([0, 1, 0, 1, 2, 0]);
  });
  test("a rotation goes by its length where it is given positions as a number, and says what it needs else", async () => {
    const scaling = { type: "dynamic", factor: 2, originalMaxPositions: 4 } as const;
    const turned = await Promise.all(
      BOTH.map(async (engine) => {
        using turn = new RotaryEmbedding({ rotaryDim: 4, maxPositions: 64, scaling });
        using x = rows(engine, [1, 9, 2, 4], 1);
        using out = turn.apply(x, 2);
        return out.read();
      }),
    );
    close(turned[1]!, turned[0]!, "turned");
    using turn = new RotaryEmbedding({ rotaryDim: 4, maxPositions: 64, scaling });
    using x = rows(DEVICE, [1, 2, 2, 4], 1);
    using positions = tensor(Int32Array.of(7, 8), [1, 2], { dtype: "int32", engine: DEVICE });
    expect(() => turn.apply(x, positions)).toThrow("give scaling.length");
  });
  test("latent attention refuses the expanded form where it would have to look at the table", () => {
    using cache = new KvCache({
      layers: 1,
      ...KINDS["latent attention"]!.layout,
      pageSize: 4,
      maxPages: 4,
      engine: DEVICE,
    });
    scope(() => {
      const layer = KINDS["latent attention"]!.make({ engine: DEVICE, seed: 3 }) as MultiHeadLatentAttention;
      using step = cache.reserve([{ sequence: cache.open(), tokens: 3 }]);
      const x = rows(DEVICE, [3, HIDDEN], 1);
      expect(() => layer.forward(x, { cache: step, expand: true })).toThrow("a table on the host");
    });
  });
  test("elements are not to be had without waiting", () => {
    using x = rows(DEVICE, [2], 1);
    expect(() => x.data).toThrow(DeviceError);
  });
});
