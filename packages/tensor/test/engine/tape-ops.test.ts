import {
  add,
  arange,
  attention,
  attentionScores,
  attentionVjp,
  type BinaryOp,
  binary,
  cast,
  concat,
  copyInto,
  type Engine,
  fill,
  full,
  type FusedMode,
  gather,
  getEngine,
  kvAppend,
  linear,
  linearBackward,
  matmul,
  mean,
  normRopeAppend,
  pagedAttention,
  pagedAttentionWithLse,
  type ReduceOp,
  recordTape,
  reduce,
  rmsNorm,
  rmsNormBackward,
  rope,
  ropeBackward,
  scatterAdd,
  scope,
  softmax,
  type Tensor,
  tensor,
  type UnaryOp,
  unary,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";
import { type Case, floats, ints, normal, replayEqualsEager, withoutAllocation } from "./tape-support.ts";

const UNARY: Readonly<Record<Exclude<UnaryOp, "not">, true>> = {
  neg: true,
  abs: true,
  exp: true,
  log: true,
  sqrt: true,
  rsqrt: true,
  square: true,
  reciprocal: true,
  tanh: true,
  sigmoid: true,
  silu: true,
  isFinite: true,
};
const BINARY: Readonly<Record<Exclude<BinaryOp, "and" | "or" | "maskZero" | "maskNegInf">, true>> = {
  add: true,
  sub: true,
  mul: true,
  div: true,
  max: true,
  min: true,
  pow: true,
  equal: true,
  less: true,
  lessEqual: true,
};
const REDUCE: Readonly<Record<ReduceOp, true>> = { sum: true, max: true, min: true };
const names = <K extends string>(table: Readonly<Record<K, true>>): K[] => Object.keys(table) as K[];
const positive = (t: Tensor): Tensor<"bool"> => unary("not", binary("lessEqual", t, 0)) as Tensor<"bool">;

const CORE: Readonly<Record<string, Case>> = {
  ...Object.fromEntries(names(UNARY).map((op) => [op, floats((x) => unary(op, x), [3, 5])])),
  ...Object.fromEntries(names(BINARY).map((op) => [op, floats((a, b) => binary(op, a, b), [3, 5], [5])])),
  ...Object.fromEntries(names(REDUCE).map((op) => [op, floats((x) => reduce(op, x, { axes: [1] }), [3, 5])])),
  "a mask": floats(
    (a, b) => {
      const mask = positive(b);
      const both = binary("and", mask, binary("or", mask, unary("not", mask)));
      return [binary("maskZero", a, both), binary("maskNegInf", a, both)];
    },
    [3, 5],
    [3, 5],
  ),
  "a product": floats(
    (a, b) => matmul(a, b.transpose() as Tensor<"float32">, { alpha: 0.5 }),
    [2, 3, 4],
    [5, 4],
  ),
  "a product into what an input holds": floats(
    (a, b, c) => {
      const out = add(c, 0);
      return matmul(a, b, { out, alpha: 2, beta: 3 });
    },
    [3, 4],
    [4, 2],
    [3, 2],
  ),
  softmax: floats((x) => softmax(x), [3, 5]),
  mean: floats((x) => mean(x, { axes: [0] }), [3, 5]),
  casts: floats((x) => cast(cast(x, "bfloat16"), "float64"), [3, 5]),
  "a concatenation of views": floats(
    (a, b) => concat([a.transpose(), b.slice(0, 1, 4)] as Tensor<"float32">[], 1),
    [5, 3],
    [4, 2],
  ),
  "constants made inside": floats(
    (x) => {
      const ramp = cast(arange(0, 5, 1, { engine: x.engine }), "float32");
      const table = tensor([[1, 2, 3, 4, 5]], undefined, { engine: x.engine });
      return add(add(x, ramp), table);
    },
    [3, 5],
  ),
  "sums into memory that was cleared": {
    make: (engine, v) => [
      normal(engine, "float32", [4, 3], 1 + v),
      ints(engine, v === 0 ? [0, 2, 2, 1] : [1, 1, 1, 0]),
    ],
    run: ([x, at]) => {
      const out = zeros([3, 3], { engine: x!.engine });
      scatterAdd(x!, at!, out);
      return out;
    },
  },
  "rows by indices": {
    make: (engine, v) => [
      normal(engine, "float32", [4, 3], 1),
      ints(engine, v === 0 ? [0, 3, 3, 1] : [2, 1, 0, 0], [2, 2]),
    ],
    run: ([x, at]) => gather(x!, at!),
  },
};

/** Pages, rows for them and a table; the second variant has other lengths, pages and slots. */
function paged(engine: Engine, v: 0 | 1): Tensor[] {
  const float = (shape: number[], seed: number): Tensor => normal(engine, "float32", shape, seed + 10 * v);
  const tables =
    v === 0
      ? [
          [0, 1, 2],
          [0, 2, 3],
          [3, 1, 2, 0],
          [6, 3],
          [13, 10],
        ]
      : [
          [0, 1, 2],
          [0, 1, 4],
          [2, 3, 1, 0],
          [2, 11],
          [9, 2],
        ];
  return [
    float([2, 4, 4], 1), // q [T, Hq, D]
    float([2, 2, 4], 2), // k [T, Hkv, D]
    float([2, 2, 4], 3),
    float([4, 2, 4, 4], 4), // pages [P, Hkv, pageSize, D]
    float([4, 2, 4, 4], 5),
    ...tables.map((t) => ints(engine, t)),
  ];
}
function fused(mode: FusedMode): Readonly<Record<string, Case>> {
  const o = { fused: mode };
  const qkv: [number[], number[], number[]] = [
    [2, 3, 4, 4],
    [2, 5, 2, 4],
    [2, 5, 2, 4],
  ];
  const positions = (engine: Engine, v: 0 | 1): Tensor[] => [
    normal(engine, "float32", [2, 3, 2, 4], 1 + v),
    normal(engine, "float32", [8, 2], 3),
    normal(engine, "float32", [8, 2], 4),
    ints(engine, v === 0 ? [0, 1, 2] : [5, 6, 7]),
  ];
  return {
    linear: floats((x, w, bias) => linear(x, w, { bias, ...o }), [2, 3, 4], [5, 4], [5]),
    "linear backward": floats(
      (x, w, d) => Object.values(linearBackward(x, w, d)),
      [2, 3, 4],
      [5, 4],
      [2, 3, 5],
    ),
    "RMS norm": floats((x, w) => rmsNorm(x, w, { unitOffset: true, ...o }), [3, 5], [5]),
    "RMS norm backward": floats(
      (x, w, d) => {
        const g = rmsNormBackward(x, w, d, o);
        return [g.x, g.weight!];
      },
      [3, 5],
      [5],
      [3, 5],
    ),
    rope: {
      make: positions,
      run: ([x, cos, sin, p]) =>
        rope(x as Tensor<"float32">, cos!, sin!, { positions: p as Tensor<"int32">, ...o }),
    },
    "rope backward": {
      make: positions,
      run: ([x, cos, sin, p]) =>
        ropeBackward(x as Tensor<"float32">, cos!, sin!, {
          positions: p as Tensor<"int32">,
          pairing: "interleaved",
          ...o,
        }),
    },
    "attention with lengths and offsets": {
      make: (engine, v) => [
        ...qkv.map((shape, i) => normal(engine, "float32", shape, 1 + i + 10 * v)),
        ints(engine, v === 0 ? [5, 3] : [2, 5]),
        ints(engine, v === 0 ? [2, 0] : [0, 1]),
      ],
      run: ([q, k, v, kvLengths, queryOffset]) =>
        attention(q as Tensor<"float32">, k as Tensor<"float32">, v as Tensor<"float32">, {
          isCausal: true,
          kvLengths: kvLengths as Tensor<"int32">,
          queryOffset: queryOffset as Tensor<"int32">,
          ...o,
        }),
    },
    "attention over values that were finite when recorded": {
      make: (engine, variant) => {
        const [q, k, v] = qkv.map((shape, i) => normal(engine, "float32", shape, 1 + i)) as [
          Tensor,
          Tensor,
          Tensor,
        ];
        if (variant === 1) fill(v.select(1, 2), NaN);
        return [q, k, v];
      },
      run: ([q, k, v]) =>
        attention(q as Tensor<"float32">, k as Tensor<"float32">, v as Tensor<"float32">, {
          isCausal: true,
          queryOffset: 0,
          ...o,
        }),
    },
    "attention backward": floats(
      (q, k, v, mask, sinks, d) => {
        const pass = attentionVjp(q, k, v, {
          attnMask: mask,
          attnMaskGradient: true,
          sinks,
          softcap: 5,
          ...o,
        });
        return [pass.output, pass.lse, ...(Object.values(pass.backward(d)) as Tensor[])];
      },
      ...qkv,
      [3, 5],
      [4],
      [2, 3, 4, 4],
    ),
    "norm, rotation and append": {
      make: (engine, v) => {
        const [q, k, rows, kPages, vPages] = paged(engine, v) as [Tensor, Tensor, Tensor, Tensor, Tensor];
        const wide = (shape: number[], seed: number): Tensor => normal(engine, "float32", shape, seed);
        const at = v === 0 ? ints(engine, [3, 0]) : ints(engine, [1, 4]);
        const slots = ints(engine, v === 0 ? [13, -1] : [9, 2]);
        return [q, k, rows, kPages, vPages, slots, wide([4], 6), wide([2, 4], 7), wide([5, 2], 8), at];
      },
      run: ([q, k, v, kPages, vPages, slots, perHead, all, table, positions]) => {
        const target = { kPages: kPages!, vPages: vPages!, slots: slots as Ints };
        const norm = { q: perHead, k: all };
        const rope = { cos: table!, sin: table!, positions: positions as Ints };
        const [a, b, c] = [q, k, v] as [Tensor<"float32">, Tensor<"float32">, Tensor<"float32">];
        const out = normRopeAppend(a, b, c, target, { norm, rope, ...o });
        return [out, add(kPages!, 0), add(vPages!, 0)];
      },
    },
    "appending and attending over pages": {
      make: paged,
      run: ([q, k, v, kPages, vPages, ...table]) => {
        const [queryIndptr, indptr, indices, lengths, slots] = table as [Ints, Ints, Ints, Ints, Ints];
        kvAppend(k!, v!, kPages!, vPages!, slots, o);
        const view = {
          kPages: kPages!,
          vPages: vPages!,
          table: { queryIndptr, indptr, indices, lengths, slots, epoch: 1 },
        };
        const { output, lse } = pagedAttentionWithLse(q as Tensor<"float32">, view, o);
        return [output, lse, pagedAttention(q as Tensor<"float32">, view, { window: { left: 2 }, ...o })];
      },
    },
  };
}
type Ints = Tensor<"int32">;

describe.each(engines)("a replay of one operation on %s gives the bits of a plain call", (name) => {
  const engine = getEngine(name);
  const hasKernels = engine.fused.linear !== undefined;

  test.each(Object.keys(CORE))("%s", (op) => {
    scope(() => {
      const { tape } = replayEqualsEager(engine, CORE[op]!);
      expect(tape.instructions.length).toBeGreaterThan(0);
      expect(tape.instructions.every(({ kind }) => kind === "core")).toBe(true);
      withoutAllocation(engine, () => tape.replay());
    });
  });
  test.each(Object.keys(fused("auto")))("%s", (op) => {
    scope(() => {
      const { tape } = replayEqualsEager(engine, fused("auto")[op]!);
      const kinds = new Set(tape.instructions.map(({ kind }) => kind));
      expect(kinds.has("composed")).toBe(!hasKernels && /^attention|pages|append/.test(op));
      if (!kinds.has("composed")) withoutAllocation(engine, () => tape.replay());
    });
  });
  test.each(Object.keys(fused("off")))("%s, composed", (op) => {
    scope(() => void replayEqualsEager(engine, fused("off")[op]!));
  });
  test("norm, rotation and append, composed, is recorded by its parts", () => {
    scope(() => {
      const { make, run } = fused("off")["norm, rotation and append"]!;
      const inputs = make(engine, 0);
      const { tape } = recordTape(engine, () => run(inputs));
      const names = tape.instructions.map((i) => i.name);
      expect(names).not.toContain("normRopeAppend");
      expect(names).toContain("kvAppend");
    });
  });
  test("scores on request, over values that were finite when recorded", () => {
    const over = fused("off")["attention over values that were finite when recorded"]!;
    scope(() => {
      replayEqualsEager(engine, {
        make: over.make,
        run: (inputs) => {
          const [q, k, v] = inputs as readonly Tensor<"float32">[];
          const { output, scores } = attentionScores(q!, k!, v!, { isCausal: true, queryOffset: 0 });
          return [output, scores];
        },
      });
    });
  });
  test("copyInto and fill write what lives outside of the recording", () => {
    scope(() => {
      const out = full([2, 3], 7, { engine });
      const each = floats(
        (x) => {
          fill(out.select(0, 0), 2);
          copyInto(x, out.select(0, 1));
          return add(out, 1);
        },
        [3],
      );
      replayEqualsEager(engine, each);
    });
  });
});
