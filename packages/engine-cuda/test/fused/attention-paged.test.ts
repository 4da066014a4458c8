/** Attention over pages on the emulated device where the suites' problems are too small: parts of long sequences, latent rows. */
import "@heed/engine-cpu";
import {
  type Engine,
  pagedAttentionWithLse,
  scope,
  type Tensor,
  tensor,
  type FloatDType,
  getEngine,
  cast,
} from "@heed/tensor";
import { createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import "../../src/index.ts";
import { emulatedMissing, ENGINE } from "../support.ts";
import { emulatedWithin } from "./engines.ts";

interface Problem {
  readonly dtype: "bfloat16" | "float16";
  readonly G: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly pageSize: number;
  readonly lengths: readonly number[];
  readonly queries: readonly number[];
  /** Values are the first Dv numbers of the keys. */
  readonly latent?: boolean;
  readonly seed: number;
}
const total = (n: readonly number[]): number => n.reduce((a, b) => a + b, 0);
const running = (n: readonly number[]): Int32Array =>
  Int32Array.from([0, ...n.map((_, i) => total(n.slice(0, i + 1)))]);

/** Output and lse of a problem's sequences, all or those that `only` names, each with the pages it has among all. */
async function run(
  on: string | Engine,
  p: Problem,
  only: readonly number[] = p.lengths.map((_, n) => n),
): Promise<{ readonly out: Float64Array; readonly lse: Float64Array }> {
  const engine = typeof on === "string" ? getEngine(on) : on;
  const rng = createRng(p.seed);
  const counts = p.lengths.map((length) => Math.ceil(length / p.pageSize));
  const P = total(counts) + 1;
  const dealt = rng.permutation(total(counts)).map((page) => page + 1);
  const starts = running(counts);
  const numbers = (shape: readonly number[]): Tensor => {
    const values = Float32Array.from({ length: total([shape.reduce((a, b) => a * b, 1)]) }, () =>
      rng.normal(),
    );
    using wide = tensor(values, shape, { dtype: "float32", engine });
    return cast(wide, p.dtype);
  };
  const ints = (values: ArrayLike<number>): Tensor<"int32"> =>
    tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });
  const [out, lse] = scope(() => {
    const allQueries = numbers([total(p.queries), p.G * p.Hkv, p.D]);
    const kPages = numbers([P, p.Hkv, p.pageSize, p.D]);
    const vPages = p.latent ? kPages.slice(3, 0, p.Dv) : numbers([P, p.Hkv, p.pageSize, p.Dv]);
    const firstQuery = running(p.queries);
    const rows = only.map((n) => allQueries.slice(0, firstQuery[n]!, firstQuery[n + 1]!));
    const q = rows.length === p.queries.length ? allQueries : rows[0]!;
    const table = {
      queryIndptr: ints(running(only.map((n) => p.queries[n]!))),
      indptr: ints(running(only.map((n) => counts[n]!))),
      indices: ints(only.flatMap((n) => dealt.slice(starts[n], starts[n + 1]))),
      lengths: ints(only.map((n) => p.lengths[n]!)),
      slots: ints(new Int32Array(q.shape[0]!)),
      epoch: 1,
    };
    const view = { kPages: kPages as Tensor<FloatDType>, vPages: vPages as Tensor<FloatDType>, table };
    const fused = on === "cpu" ? "auto" : "require";
    const { output, lse } = pagedAttentionWithLse(q as Tensor<FloatDType>, view, {
      fused,
      softcap: p.seed % 2 ? 20 : 0,
    });
    return [output, lse];
  });
  const read = async (t: Tensor): Promise<Float64Array> => {
    using wide = cast(t, "float64");
    t[Symbol.dispose]();
    return (await wide.read()) as Float64Array;
  };
  return { out: await read(out), lse: await read(lse) };
}
/** Shared memory of 8.0, in which latent rows have smaller tiles. */
const AMPERE = { sharedPerBlock: 163 << 10 };
/** Both round an output once (2^-9 of it in bfloat16, each), and ours the weights, by 2^-9 of values that seldom exceed 4. */
function close(a: Float64Array, b: Float64Array, bound: number): void {
  expect(a.length).toBe(b.length);
  const worst = a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i]!) / (1 + Math.abs(b[i]!))), 0);
  expect(worst).toBeLessThan(bound); // NaN is not less
}

describe.skipIf(emulatedMissing !== undefined)("attention over pages on the emulated device", () => {
  // The part of a sequence is 256 tokens, so that these have 1 to 12.
  const long: Problem = {
    dtype: "bfloat16",
    G: 4,
    Hkv: 2,
    D: 64,
    Dv: 64,
    pageSize: 32,
    lengths: [1500, 1, 257, 3000],
    queries: [1, 1, 1, 1],
    seed: 1,
  };
  test.each([long, { ...long, dtype: "float16" as const, D: 128, Dv: 112, seed: 2 }])(
    "a decode step of long sequences equals the CPU's, %#",
    async (p) => {
      const [ours, theirs] = [await run(ENGINE, p), await run("cpu", p)];
      close(ours.out, theirs.out, 2 ** -7);
      close(ours.lse, theirs.lse, 1e-4);
    },
  );
  test("a sequence's result has the same bits alone and in a batch", async () => {
    const all = await run(ENGINE, long);
    const row = all.out.length / long.lengths.length;
    for (const n of [0, 2, 3]) {
      const { out } = await run(ENGINE, { ...long }, [n]);
      expect(out).toEqual(all.out.slice(n * row, (n + 1) * row));
    }
  });
  const latent: Problem = {
    dtype: "bfloat16",
    G: 80,
    Hkv: 1,
    D: 576,
    Dv: 512,
    pageSize: 16,
    lengths: [40, 1100, 7],
    queries: [1, 1, 1],
    latent: true,
    seed: 4,
  };
  test.each([
    latent,
    {
      ...latent,
      dtype: "float16" as const,
      G: 20,
      D: 72,
      Dv: 64,
      lengths: [33, 5],
      queries: [1, 1],
      seed: 5,
    },
    { ...latent, G: 24, D: 320, Dv: 256, lengths: [70, 5], queries: [3, 1], seed: 6 },
  ])("latent rows, whose values are a prefix of their keys, equal the CPU's, %#", async (p) => {
    const theirs = await run("cpu", p);
    for (const engine of [ENGINE, emulatedWithin(AMPERE)]) {
      const ours = await run(engine, p);
      close(ours.out, theirs.out, 2 ** -7);
      close(ours.lse, theirs.lse, 1e-4);
    }
  });
  test("a sequence of latent rows in parts has the same bits alone and in a batch", async () => {
    const p = { ...latent, G: 68, lengths: [600, 5, 1030], queries: [1, 2, 1] };
    const all = await run(ENGINE, p);
    const row = all.out.length / 4;
    for (const [n, first, tokens] of [
      [0, 0, 1],
      [1, 1, 2],
      [2, 3, 1],
    ] as const) {
      const { out } = await run(ENGINE, p, [n]);
      expect(out).toEqual(all.out.slice(first * row, (first + tokens) * row));
    }
  });
});
