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
  sealPages,
  softmax,
  sum,
  tensor,
} from "@heed/tensor";
import type { Engine, PagedView, Pages, PageTable, Tensor } from "@heed/tensor";
import { codePages, counted, groupPages } from "../bench/storage.ts";

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
  for (const [D, softcap] of [
    [64, 0],
    [128, 0],
    [128, 5],
    [256, 0],
  ] as const) {
    const [q, k, v] = [random([1, 70, 4, D], 1), random([1, 90, 2, D], 2), random([1, 90, 2, D], 3)];
    const vjp = attentionVjp(q, k, v, { isCausal: true, softcap });
    const gradients = vjp.backward(random([1, 70, 4, D], 4));
    for (const [name, t] of Object.entries({ output: vjp.output, ...gradients }))
      if (t !== undefined) await keep(`attention ${name} of head size ${D}, softcap ${softcap}`, t);
  }
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
  for (const storage of ["bfloat16", "int8", "float8e4m3", "int4"] as const)
    await keep(
      `attention over pages of ${storage}`,
      pagedAttention(random([2, 4, 64], 16), paged(engine, storage)),
    );
  await keep("latent attention", latent(engine));
  return out;
}
const int32 = (engine: Engine, values: number[]) => tensor(values, undefined, { dtype: "int32", engine });
/** Two sequences with a query each, of 35 and 33 tokens in pages of 32, P in all. */
function tableOf(engine: Engine): PageTable {
  return {
    queryIndptr: int32(engine, [0, 1, 2]),
    indptr: int32(engine, [0, 2, 4]),
    indices: int32(engine, [1, 0, 2, 3]),
    lengths: int32(engine, [35, 33]),
    slots: int32(engine, [2, 96]),
    epoch: 1,
  };
}
const PAGES = [4, 2, 32, 64] as const;
/** Keys and values of both sequences and of the pages' other tokens, which nobody sees; int4 with two pages sealed. */
function paged(engine: Engine, storage: "bfloat16" | "int8" | "float8e4m3" | "int4"): PagedView<Pages> {
  const [P, Hkv, size, D] = PAGES;
  const random = (shape: number[], seed: number) => randn(shape, { seed, dtype: "bfloat16", engine });
  const floats = [12, 13].map((seed) => random([...PAGES], seed));
  const table = tableOf(engine);
  if (storage === "int4") {
    const residual = { k: floats[0]!, v: floats[1]! };
    const [kPages, vPages] = groupPages(engine, [2, Hkv, size, D], residual);
    sealPages(kPages, vPages, int32(engine, [2, 3]), int32(engine, [0, 1]));
    return { kPages, vPages, table: { ...table, indices: int32(engine, [1, 2, 0, 3]) } };
  }
  const [kPages, vPages] = (
    storage === "bfloat16" ? floats : [1, 2].map(() => codePages(engine, storage, PAGES))
  ) as [Pages, Pages];
  const rows = P * size;
  const slots = int32(engine, Array.from(counted(rows)));
  kvAppend(random([rows, Hkv, D], 14), random([rows, Hkv, D], 15), kPages, vPages, slots);
  return { kPages, vPages, table };
}
/** Latent rows: values are a prefix of the keys. */
function latent(engine: Engine): Tensor {
  const kPages = randn([4, 1, 32, 576], { seed: 17, dtype: "bfloat16", engine });
  const view = { kPages, vPages: kPages.slice(-1, 0, 512), table: tableOf(engine) };
  return pagedAttention(mul(randn([2, 16, 576], { seed: 18, dtype: "bfloat16", engine }), 0.1), view);
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
