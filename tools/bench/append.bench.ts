import { normRopeAppend } from "@heed/tensor";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject } from "./harness.ts";
import { uniform } from "./random.ts";

const HQ = 32;
const HKV = 8;
const D = 128;

/** Norm, rotation and append of one token's heads and of a prefill's: in one pass, and one operation after the other. */
export function appendBenches(engine: BenchEngine): readonly Bench[] {
  return [1, 512].flatMap((tokens) =>
    [true, false].map((isFused) => ({
      name: `append ${HQ}/${HKV} d${D} ${tokens} float32 norm and rotation${isFused ? "" : ", parts apart"}`,
      dtype: "float32",
      shape: { tokens, numHeads: HQ, numKvHeads: HKV, headDim: D },
      work: { bound: "read" as const, bytes: 4 * tokens * (HQ + 2 * HKV) * D },
      open: () => open(engine, tokens, isFused),
    })),
  );
}

function open(engine: BenchEngine, tokens: number, isFused: boolean): Subject {
  const product = engine.upload(
    uniform(tokens * (HQ + 2 * HKV) * D, 1),
    [tokens, (HQ + 2 * HKV) * D],
    "float32",
  );
  let at = 0;
  const heads = [HQ, HKV, HKV].map((count) => {
    using flat = product.slice(1, at, (at += count * D));
    return flat.reshape([tokens, count, D]);
  });
  const [q, k, v] = heads as [typeof product, typeof product, typeof product];
  const pages = (seed: number) => engine.upload(uniform(9 * HKV * 64 * D, seed), [9, HKV, 64, D], "float32");
  const order = Int32Array.from({ length: tokens }, (_, t) => t);
  const slots = engine.uploadInt32(
    order.map((t) => t + 64),
    [tokens],
  );
  const target = { kPages: pages(2), vPages: pages(3), slots };
  const positions = engine.uploadInt32(order, [tokens]);
  const table = engine.upload(uniform((tokens * D) / 2, 4), [tokens, D / 2], "float32");
  const weight = engine.upload(uniform(D, 5), [D], "float32");
  const options = {
    norm: { q: weight, k: weight },
    rope: { cos: table, sin: table, positions },
    fused: isFused ? ("require" as const) : ("off" as const),
  };
  return {
    run() {
      using _out = normRopeAppend(q, k, v, target, options);
    },
    [Symbol.dispose]: () =>
      [product, ...heads, ...Object.values(target), positions, table, weight].forEach((t) =>
        t[Symbol.dispose](),
      ),
  };
}
