import { linear } from "@heed/tensor";
import { load } from "./engine.ts";
import type { BenchEngine } from "./engine.ts";
import type { Bench } from "./harness.ts";
import { uniform } from "./random.ts";
import { linearShapes, linearWork } from "./shapes.ts";
import type { LinearShape } from "./shapes.ts";

/** Products with a constant weight. Ours keeps it [out, in], as checkpoints do; the peer packs it when its session opens. */
export function linearBenches(engine: BenchEngine): readonly Bench[] {
  return linearShapes.map((shape) => bench(engine, shape));
}

function bench(engine: BenchEngine, shape: LinearShape): Bench {
  const { rows, inFeatures, outFeatures, dtype } = shape;
  const x = () => uniform(rows * inFeatures, 1);
  const weight = () => uniform(outFeatures * inFeatures, 2);
  return {
    name: `linear ${rows}x${inFeatures}x${outFeatures} ${dtype}`,
    dtype,
    shape: { rows, inFeatures, outFeatures },
    work: linearWork(shape),
    open() {
      const input = engine.upload(x(), [rows, inFeatures], dtype);
      const w = engine.upload(weight(), [outFeatures, inFeatures], dtype);
      return {
        run() {
          using _out = linear(input, w);
        },
        async read() {
          using out = linear(input, w);
          return load(await out.read(), dtype);
        },
        [Symbol.dispose]: () => [input, w].forEach((t) => t[Symbol.dispose]()),
      };
    },
    openPeer: (peers) =>
      peers.linear(rows, inFeatures, outFeatures, x(), transposed(weight(), outFeatures, inFeatures)),
  };
}

/** [rows, columns] as [columns, rows]. */
export function transposed(matrix: Float32Array, rows: number, columns: number): Float32Array<ArrayBuffer> {
  const out = new Float32Array(matrix.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[c * rows + r] = matrix[r * columns + c]!;
  }
  return out;
}
