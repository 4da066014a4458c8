import { GroupedQueryAttention } from "@heed/attention";
import { KvCache, type Step } from "@heed/kvcache";
import type { BlockTableReader } from "@heed/tensor";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject } from "./harness.ts";
import { headMajorRow } from "./layout.ts";
import { transposed } from "./linear.bench.ts";
import { uniform } from "./random.ts";
import { describe, layerShapes, layerWork, peerShape } from "./shapes.ts";
import type { LayerShape } from "./shapes.ts";

const BASE = 10_000;

/**
 * A whole layer: projections, rotation, attention, output projection. Prefill without a cache, and a decode step over pages of 64; the
 * step also with q and k normalised, with norm, rotation and append in one pass and one after the other.
 */
export function layerBenches(engine: BenchEngine): readonly Bench[] {
  const steps = layerShapes.filter(({ queryLength }) => queryLength === 1);
  return [
    ...layerShapes.map((shape) => bench(engine, shape)),
    ...steps.flatMap((shape) => [true, false].map((isFused) => normalised(engine, shape, isFused))),
  ];
}

function normalised(engine: BenchEngine, shape: LayerShape, isFused: boolean): Bench {
  const { openPeer: _, ...plain } = bench(engine, shape);
  const name = `${plain.name} q/k norm${isFused ? "" : ", parts apart"}`;
  return { ...plain, name, open: () => decode(engine, shape, { qkNorm: {}, isFused }) };
}

function bench(engine: BenchEngine, shape: LayerShape): Bench {
  const { hidden, queryLength, dtype, ...sizes } = shape;
  return {
    name: `layer ${queryLength === 1 ? "decode" : "prefill"} hidden ${hidden} ${describe(shape)}`,
    dtype,
    shape: { batch: 1, hidden, queryLength, ...sizes },
    work: layerWork(shape),
    open: () =>
      queryLength === 1 ? decode(engine, shape, { qkNorm: null, isFused: true }) : prefill(engine, shape),
    openPeer(peers) {
      const [q, k, v, o] = projections(shape);
      const weights = { q: q.peer, k: k.peer, v: v.peer, output: o.peer, rotary: tables(shape) };
      const caches = queryLength === 1 ? pastRows(shape) : undefined;
      return peers.layer(peerShape(shape, queryLength), hidden, weights, input(shape), caches);
    },
  };
}

function input({ queryLength, hidden }: LayerShape): Float32Array<ArrayBuffer> {
  return uniform(queryLength * hidden, 1);
}

/** q, k, v and output weights as ours stores them, [out, in], and as the peer does, [in, out]; small, so that scores stay tame. */
function projections({ hidden, numHeads, numKvHeads, headDim }: LayerShape) {
  const wide = numHeads * headDim;
  const narrow = numKvHeads * headDim;
  const projection = (out: number, inner: number, seed: number): Projection => {
    const ours = uniform(out * inner, seed).map((x) => x / Math.sqrt(inner));
    return { ours, peer: transposed(ours, out, inner) };
  };
  return [
    projection(wide, hidden, 10),
    projection(narrow, hidden, 11),
    projection(narrow, hidden, 12),
    projection(hidden, wide, 13),
  ] as const;
}
interface Projection {
  readonly ours: Float32Array<ArrayBuffer>;
  readonly peer: Float32Array<ArrayBuffer>;
}

/** Cosines and sines [length, D / 2] of the rotation. */
function tables({ length, headDim }: LayerShape): { cos: Float32Array; sin: Float32Array } {
  const half = headDim / 2;
  const angle = (i: number): number => Math.floor(i / half) * BASE ** (-(i % half) / half);
  const table = (f: (x: number) => number): Float32Array =>
    Float32Array.from({ length: length * half }, (_, i) => f(angle(i)));
  return { cos: table(Math.cos), sin: table(Math.sin) };
}

/** Keys and values of the tokens before this step, head-major; the last row is the step's own. */
function pastRows({ length, numKvHeads, headDim }: LayerShape): {
  keyCache: Float32Array;
  valueCache: Float32Array;
} {
  const size = length * numKvHeads * headDim;
  return { keyCache: uniform(size, 2), valueCache: uniform(size, 3) };
}

function layerOf(engine: BenchEngine, shape: LayerShape, qkNorm: {} | null = null): GroupedQueryAttention {
  const { hidden: hiddenSize, numHeads, numKvHeads, headDim } = shape;
  const layer = GroupedQueryAttention.create({
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim,
    rope: { base: BASE },
    qkNorm,
    engine: engine.engine,
  });
  projections(shape).forEach(({ ours }, i) => {
    layer.parameters.get(`${"qkvo"[i]}_proj.weight`)!.data.set(ours as never);
  });
  return layer;
}

function prefill(engine: BenchEngine, shape: LayerShape): Subject {
  const layer = layerOf(engine, shape);
  const x = engine.upload(input(shape), [1, shape.queryLength, shape.hidden], "float32");
  return {
    run() {
      using _out = layer.forward(x);
    },
    async read() {
      using out = layer.forward(x);
      return out.read();
    },
    [Symbol.dispose]: () => [x, layer].forEach((t) => t[Symbol.dispose]()),
  };
}

interface StepOptions {
  readonly qkNorm: {} | null;
  /** Norm, rotation and append in one pass. */
  readonly isFused: boolean;
}
/** The step for a layer that must write finished rows. */
function finishedRowsOnly(step: Step): BlockTableReader {
  return { positions: step.positions, write: step.write.bind(step), view: step.view.bind(step) };
}

function decode(engine: BenchEngine, shape: LayerShape, { qkNorm, isFused }: StepOptions): Subject {
  const { length, hidden, numKvHeads, headDim } = shape;
  const layer = layerOf(engine, shape, qkNorm);
  const x = engine.upload(input(shape), [1, 1, hidden], "float32");
  const cache = new KvCache({
    layers: 1,
    numKvHeads,
    headDim,
    maxPages: Math.ceil(length / 64),
    engine: engine.engine,
  });
  const sequence = cache.open();
  const { keyCache, valueCache } = pastRows(shape);
  const past = length - 1;
  const rows = (headMajor: Float32Array): Float32Array<ArrayBuffer> => {
    const out = new Float32Array(past * numKvHeads * headDim);
    for (let t = 0; t < past; t++) out.set(headMajorRow(headMajor, shape, t), t * numKvHeads * headDim);
    return out;
  };
  using k = engine.upload(rows(keyCache), [past, numKvHeads, headDim], "float32");
  using v = engine.upload(rows(valueCache), [past, numKvHeads, headDim], "float32");
  const filling = cache.reserve([{ sequence, tokens: past }]);
  filling.write(0, k, v);
  filling.commit();
  const readerOf = (step: Step): BlockTableReader => (isFused ? step : finishedRowsOnly(step));
  return {
    // The step is cancelled, so that every run sees the same length.
    run() {
      using step = cache.reserve([{ sequence, tokens: 1 }]);
      using _out = layer.forward(x, { cache: readerOf(step) });
    },
    async read() {
      using step = cache.reserve([{ sequence, tokens: 1 }]);
      using out = layer.forward(x, { cache: readerOf(step) });
      return out.read();
    },
    [Symbol.dispose]: () => [cache, x, layer].forEach((t) => t[Symbol.dispose]()),
  };
}
