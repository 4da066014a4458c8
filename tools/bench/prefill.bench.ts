import { attention, attentionVjp } from "@heed/tensor";
import { load } from "./engine.ts";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject } from "./harness.ts";
import { uniform } from "./random.ts";
import { backwardShapes, backwardWork, describe, peerShape, prefillShapes, prefillWork } from "./shapes.ts";
import type { PrefillShape } from "./shapes.ts";

/** Forward prefill, with the peer on the same values; and forward + backward. */
export function prefillBenches(engine: BenchEngine): readonly Bench[] {
  return [
    ...prefillShapes.map((shape) => forward(engine, shape)),
    ...backwardShapes.map((shape) => forwardBackward(engine, shape)),
  ];
}

function forward(engine: BenchEngine, shape: PrefillShape): Bench {
  const inputs = () => queryKeyValue(shape);
  return {
    name: `prefill ${describe(shape)}`,
    dtype: shape.dtype,
    shape: sizes(shape),
    work: prefillWork(shape),
    open: () => openForward(engine, shape),
    openPeer: (peers) => peers.prefill(peerShape(shape, shape.length), ...inputs()),
  };
}

function openForward(engine: BenchEngine, shape: PrefillShape): Subject {
  const [q, k, v] = upload(engine, shape);
  return {
    run() {
      using _out = attention(q, k, v, { isCausal: true });
    },
    async read() {
      using out = attention(q, k, v, { isCausal: true });
      return load(await out.read(), shape.dtype);
    },
    [Symbol.dispose]: () => [q, k, v].forEach((t) => t[Symbol.dispose]()),
  };
}

function forwardBackward(engine: BenchEngine, shape: PrefillShape): Bench {
  return {
    name: `forward+backward ${describe(shape)}`,
    dtype: shape.dtype,
    shape: sizes(shape),
    work: backwardWork(shape),
    open() {
      const [q, k, v] = upload(engine, shape);
      const { length, numHeads, headDim } = shape;
      const dOut = engine.upload(
        uniform(length * numHeads * headDim, 4),
        [1, length, numHeads, headDim],
        shape.dtype,
      );
      return {
        run() {
          using pass = attentionVjp(q, k, v, { isCausal: true });
          const gradients = pass.backward(dOut);
          for (const t of [pass.output, gradients.q, gradients.k, gradients.v]) t[Symbol.dispose]();
        },
        [Symbol.dispose]: () => [q, k, v, dOut].forEach((t) => t[Symbol.dispose]()),
      };
    },
  };
}

function queryKeyValue({ length, numHeads, numKvHeads, headDim }: PrefillShape) {
  const keys = length * numKvHeads * headDim;
  return [uniform(length * numHeads * headDim, 1), uniform(keys, 2), uniform(keys, 3)] as const;
}

function upload(engine: BenchEngine, shape: PrefillShape) {
  const { length, numKvHeads, numHeads, headDim, dtype } = shape;
  const [q, k, v] = queryKeyValue(shape);
  return [
    engine.upload(q, [1, length, numHeads, headDim], dtype),
    engine.upload(k, [1, length, numKvHeads, headDim], dtype),
    engine.upload(v, [1, length, numKvHeads, headDim], dtype),
  ] as const;
}

function sizes({ dtype: _, ...rest }: PrefillShape): Readonly<Record<string, number>> {
  return { batch: 1, ...rest };
}
