/**
 * The short list that compute-sanitizer runs, which makes each launch a hundred times slower: one launch of each kind of kernel on small
 * problems, against the CPU engine. `bun tools/gpu-check/short.ts ENGINE`; exits with 1 when a result is off.
 */
import "@heed/engine-cpu";
import "@heed/engine-cuda";
import {
  attentionVjp,
  cast,
  getEngine,
  mul,
  kvAppend,
  matmul,
  pagedAttention,
  randn,
  rmsNorm,
  rope,
  softmax,
  sum,
  tensor,
} from "@heed/tensor";
import type { Engine, Tensor } from "@heed/tensor";

/** Largest difference that rounding to bfloat16 and another order of sums explain, for results of about 1. */
const ALLOWED = 0.05;

type Results = Readonly<Record<string, Float64Array>>;

async function results(engine: Engine): Promise<Results> {
  const out: Record<string, Float64Array> = {};
  const keep = async (name: string, t: Tensor): Promise<void> => {
    const values = await cast(t, "float64").read();
    out[name] = Float64Array.from(values as Float64Array);
  };
  const random = (shape: number[], seed: number) => randn(shape, { seed, dtype: "bfloat16", engine });
  const [q, k, v] = [random([1, 70, 4, 64], 1), random([1, 90, 2, 64], 2), random([1, 90, 2, 64], 3)];
  const vjp = attentionVjp(q, k, v, { isCausal: true });
  const gradients = vjp.backward(random([1, 70, 4, 64], 4));
  for (const [name, t] of Object.entries({
    output: vjp.output,
    dq: gradients.q,
    dk: gradients.k,
    dv: gradients.v,
  }))
    await keep(`attention ${name}`, t);
  const angle = (of: (x: number) => number) =>
    tensor(
      Float32Array.from({ length: 11 * 32 }, (_, i) => of(i / 40)),
      [11, 32],
      { engine },
    );
  await keep("matmul", matmul(mul(random([40, 64], 5), 0.1), random([64, 50], 6)));
  await keep("softmax", softmax(random([7, 300], 7)));
  await keep("sum", sum(mul(random([5, 1000], 8), 0.03), { axes: [1] }));
  await keep("rms norm", rmsNorm(random([9, 256], 9), random([256], 10)));
  await keep("rotation", rope(random([1, 11, 4, 64], 11), angle(Math.cos), angle(Math.sin)));
  await keep("paged attention", paged(engine, random));
  return out;
}
function paged(engine: Engine, random: (shape: number[], seed: number) => Tensor<"bfloat16">): Tensor {
  const pages = { kPages: random([6, 2, 16, 64], 12), vPages: random([6, 2, 16, 64], 13) };
  const int32 = (values: number[]) => tensor(values, undefined, { dtype: "int32", engine });
  kvAppend(random([2, 2, 64], 14), random([2, 2, 64], 15), pages.kPages, pages.vPages, int32([34, 80]));
  const table = {
    queryIndptr: int32([0, 1, 2]),
    indptr: int32([0, 3, 6]),
    indices: int32([1, 0, 2, 4, 3, 5]),
    lengths: int32([35, 33]),
    slots: int32([34, 80]),
    epoch: 1,
  };
  return pagedAttention(random([2, 4, 64], 16), { ...pages, table });
}
const [ours, expected] = await Promise.all(
  [process.argv[2] ?? "cuda", "cpu"].map((name) => results(getEngine(name))),
);
let failed = false;
for (const [name, values] of Object.entries(expected!)) {
  const worst = values.reduce((most, x, i) => Math.max(most, Math.abs(x - ours![name]![i]!)), 0);
  // Written so that a NaN fails.
  if (!(worst <= ALLOWED)) {
    failed = true;
    console.error(`${name}: off by ${worst}`);
  }
}
console.log(
  `${Object.keys(expected!).length} results ${failed ? "compared, some off" : "agree with the CPU engine"}`,
);
process.exit(failed ? 1 : 0);
