import {
  attention,
  attentionScores,
  attentionVjp,
  attentionWithLse,
  concat,
  gather,
  kvAppend,
  linear,
  linearBackward,
  matmul,
  mean,
  normRopeAppend,
  ones,
  pagedAttention,
  randn,
  rmsNorm,
  rmsNormBackward,
  rope,
  ropeBackward,
  scope,
  softmax,
  type Tensor,
  tensor,
  toFloat64,
  trackLeaks,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../engine/fake.ts";
import { engines } from "../engines.ts";

/** What an operation returns, with the number of storages that are then alive. */
type Use = readonly [run: () => unknown, storages: number];

describe.each([...engines])("memory of operations on %s", (engine) => {
  const on = { engine, dtype: "bfloat16" } as const; // 16 bits make every composed form convert
  const int = (values: number[]): Tensor<"int32"> => tensor(values, undefined, { engine, dtype: "int32" });
  const q = randn([1, 4, 4, 8], { ...on, seed: 1 });
  const k = randn([1, 6, 2, 8], { ...on, seed: 2 });
  const per = ones([4], on);
  const bias = randn([6], { ...on, seed: 3 });
  const table = ones([4, 4], { engine });
  const rows = randn([3, 8], { ...on, seed: 4 });
  const weight = randn([5, 8], { ...on, seed: 5 });
  const view = {
    kPages: randn([3, 2, 4, 8], { ...on, seed: 6 }),
    vPages: randn([3, 2, 4, 8], { ...on, seed: 7 }),
    table: {
      queryIndptr: int([0, 4]),
      indptr: int([0, 2]),
      indices: int([2, 0]),
      lengths: int([6]),
      slots: int([8, 9, 10, 11]),
      epoch: 0,
    },
  };
  const rules = { isCausal: true, softcap: 5, sinks: per, alibiSlopes: per } as const;
  const options = { ...rules, attnMask: bias, kvLengths: int([5]), dropout: { probability: 0.5, seed: 1 } };
  const uses: Readonly<Record<string, (fused: "auto" | "off") => Use>> = {
    attention: (fused) => [() => attention(q, k, k, { ...options, fused }), 1],
    attentionWithLse: (fused) => [() => attentionWithLse(q, k, k, { ...options, fused }), 2],
    attentionScores: () => [() => attentionScores(q, k, k, options), 2],
    "attention backward": (fused) => [
      () => {
        const vjp = attentionVjp(q, k, k, { ...options, attnMaskGradient: true, fused });
        const { output } = vjp;
        const gradients = vjp.backward(output);
        vjp[Symbol.dispose]();
        return { output, gradients };
      },
      6,
    ],
    pagedAttention: (fused) => [() => pagedAttention(q.reshape([4, 4, 8]), view, { ...rules, fused }), 1],
    kvAppend: (fused) => [
      () =>
        kvAppend(
          k.select(0, 0).slice(0, 0, 4),
          k.select(0, 0).slice(0, 0, 4),
          view.kPages,
          view.vPages,
          view.table.slots,
          { fused },
        ),
      0,
    ],
    normRopeAppend: (fused) => [
      () => {
        const [row, all] = [q.reshape([4, 4, 8]), k.select(0, 0).slice(0, 0, 4)];
        const positions = int([0, 1, 2, 3]);
        const slots = view.table.slots;
        const norm = { q: ones([4, 8], on), k: randn([8], { ...on, dtype: "float16" }) };
        const rope = { cos: table, sin: table, positions };
        const target = { kPages: view.kPages, vPages: view.vPages, slots };
        return normRopeAppend(row, all, all, target, { norm, rope, fused });
      },
      1,
    ],
    rope: (fused) => [() => rope(q, table, table, { fused }), 1],
    ropeBackward: (fused) => [() => ropeBackward(q, table, table, { fused }), 1],
    rmsNorm: (fused) => [() => rmsNorm(rows.transpose(), ones([3], on), { fused }), 1],
    rmsNormBackward: (fused) => [() => rmsNormBackward(rows, ones([8], on), rows, { fused }), 2],
    linear: (fused) => [() => linear(rows, weight, { bias: ones([5], on), fused }), 1],
    linearBackward: () => [() => linearBackward(rows, weight, ones([3, 5], on)), 3],
    "softmax, matmul, mean, concat and gather": () => [
      () => [
        softmax(rows),
        matmul(rows, weight.transpose()),
        mean(rows, { axes: [0] }),
        concat([rows, rows]),
        gather(rows, int([0])),
      ],
      5,
    ],
  };
  for (const [name, use] of Object.entries(uses)) {
    test(`${name} leaves its results and nothing else`, () => {
      for (const fused of ["auto", "off"] as const) {
        const [run, storages] = use(fused);
        using tracker = trackLeaks();
        const kept = scope(() => {
          const outer = run();
          return { outer };
        });
        expect(tracker.report()).toHaveLength(storages);
        free(kept);
        expect(tracker.report()).toHaveLength(0);
      }
    });
  }
  test("outside any scope, operations free their own temporaries", () => {
    for (const fused of ["auto", "off"] as const) {
      using tracker = trackLeaks();
      using a = attention(q, k, k, { isCausal: true, fused });
      using b = rope(q, table, table, { fused });
      using c = linear(rows, weight, { fused });
      expect(tracker.report()).toHaveLength([a, b, c].length);
    }
  });
  test("two vjps may be open at once, and be asked in any order, more than once", () => {
    scope(() => {
      const alone = attentionVjp(q, k, k).backward(q);
      const first = attentionVjp(q, k, k);
      const second = attentionVjp(k, k, k, { isCausal: true });
      const other = second.backward(k);
      const again = first.backward(q);
      expect([...toFloat64(again.q)]).toEqual([...toFloat64(alone.q)]);
      expect([...toFloat64(second.backward(k).v)]).toEqual([...toFloat64(other.v)]);
    });
  });
});
test("a kernel that throws leaves nothing allocated", () => {
  const run = (): never => {
    throw new RangeError("kernel");
  };
  const op = { refusal: () => undefined, run };
  const engine = fakeEngine({ attention: op, rope: op, linear: op });
  const q = ones([1, 2, 2, 4], { engine });
  using tracker = trackLeaks();
  expect(() => attention(q, q, q)).toThrow(RangeError);
  expect(() => linear(q, ones([3, 4], { engine }))).toThrow(RangeError);
  expect(tracker.report().map((leak) => leak.bytes)).toEqual([48]); // the weight just made
});
function free(x: unknown): void {
  if (typeof x !== "object" || x === null) return;
  if (Symbol.dispose in x) (x as Disposable)[Symbol.dispose]();
  else for (const value of Object.values(x)) free(value);
}
