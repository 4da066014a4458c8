/** Kernels on operands that the host wrote past 2^32 bytes, and whose rows lie further apart than that, against the same ones nearby. */
import {
  add,
  attention,
  attentionVjp,
  cast,
  concat,
  copyInto,
  type DType,
  DTYPES,
  type FloatDType,
  gather,
  kvAppend,
  linear,
  matmul,
  normRopeAppend,
  pagedAttention,
  type PageTable,
  randn,
  rmsNorm,
  rmsNormBackward,
  scatterAdd,
  rope,
  scope,
  softmax,
  sum,
  type Tensor,
  tensor,
  toFloat64,
  unary,
} from "@heed/tensor";
import { afterEach, describe, expect, test } from "bun:test";
import { arena, at, atEnd, engine, GIB, rewind, spread, STRIDE } from "./arena.ts";

const FLOATS: readonly FloatDType[] = ["float32", "bfloat16", "float16", "float64"];
type F = Tensor<"float32">; // or another dtype, which is the test's parameter
let seed = 1;
const random = (dtype: DType, ...shape: number[]): F =>
  cast(randn(shape, { engine, seed: seed++ }), dtype) as Tensor as F;
const int32 = (values: readonly number[]): Tensor<"int32"> =>
  tensor(Int32Array.from(values), undefined, { engine });
const numbers = (t: Tensor): number[] => [...toFloat64(t)];

/** `f` gives the same bits of operands at the arena's end, and of operands spread over it, as of small ones. */
function check(operands: readonly F[], f: (...t: F[]) => readonly Tensor[]): void {
  scope(() => {
    const near = operands.map((t) => t.contiguous());
    const [end, wide] = [operands.map(atEnd), operands.map(spread)]; // before f writes to them
    const expected = f(...near).map(numbers);
    for (const result of expected) expect(result.some((x) => x !== 0)).toBe(true);
    expect(f(...end).map(numbers)).toEqual(expected);
    expect(f(...wide).map(numbers)).toEqual(expected);
  });
}
afterEach(rewind);

describe.each(FLOATS)("%s past 2^32 bytes", (dtype) => {
  test("copies, conversions, elementwise, reductions, softmax", () => {
    check([random(dtype, 3, 37), random(dtype, 3, 37)], (x, y) => {
      copyInto(x!.slice(0, 0, 1), y!.slice(0, 2, 3));
      return [
        x!.contiguous(),
        y!,
        cast(x!, "float64"),
        cast(x!, "bfloat16"),
        x!.transpose().contiguous(),
        concat([x!, y!]),
        unary("exp", x!),
        add(x!, y!),
        sum(x!, { axes: [0] }),
        sum(x!, { axes: [1] }),
        softmax(x!),
      ];
    });
  });
  test("results that are written there are where the host reads them, and nowhere else", () => {
    scope(() => {
      const x = random(dtype, 3, 37);
      const out = spread(x);
      engine.unary("neg", x, out);
      engine.binary("add", out, x, out);
      engine.binary("sub", out, x, out);
      for (let i = 0; i < 3; i++) {
        const { data, offset } = out.select(0, i) as F;
        expect([...data]).toEqual([...(unary("neg", x.select(0, i)) as F).data]);
        const byte = offset * data.BYTES_PER_ELEMENT;
        const { data: aliased } = at(byte % 2 ** 32, "uint8", [data.byteLength]);
        expect(aliased.every((b) => b === 0)).toBe(true);
      }
    });
  });
  test("products", () => {
    check([random(dtype, 3, 33), random(dtype, 3, 33), random(dtype, 1, 3)], (x, w, bias) => [
      matmul(x!, w!.transpose()),
      matmul(x!.transpose(), w!),
      linear(x!, w!, { bias: bias!.select(0, 0), fused: "require" }),
    ]);
    check([random(dtype, 3, 5, 16), random(dtype, 3, 16, 7)], (a, b) => [matmul(a!, b!)]);
    check([random(dtype, 3, 40), random(dtype, 2, 40), random(dtype, 3, 2)], (a, b, out) => {
      matmul(a!, b!.transpose(), { out: out! });
      return [out!];
    });
  });
  test("rows by index", () => {
    const indices = int32([2, 0, 2]);
    check([random(dtype, 3, 37), random(dtype, 3, 37)], (x, out) => {
      scatterAdd(x!, indices, out!);
      return [gather(x!, indices), out!];
    });
  });
  test("norms and attention", () => {
    check([random(dtype, 3, 40), random(dtype, 1, 40), random(dtype, 3, 40)], (x, w, dOut) => {
      const { x: dx, weight } = rmsNormBackward(x!, w!.select(0, 0), dOut!, { fused: "require" });
      return [rmsNorm(x!, w!.select(0, 0), { fused: "require" }), dx, weight!];
    });
    const wide = dtype === "float64" ? dtype : "float32";
    check([random(dtype, 3, 3, 2, 16), random(wide, 3, 8), random(wide, 3, 8)], (x, cos, sin) => [
      rope(x!, cos!, sin!, { fused: "require" }),
    ]);
    const shape = [3, 5, 2, 16] as const;
    const operands = [1, 2, 3, 4].map(() => random(dtype, ...shape));
    check(operands, (q, k, v, dOut) => {
      const { backward } = attentionVjp(q!, k!, v!, { fused: "require" });
      const { q: dq, k: dk, v: dv } = backward(dOut!);
      return [attention(q!, k!, v!, { isCausal: true, fused: "require" }), dq, dk, dv];
    });
    check(operands, (...t) => {
      const [q, k, v] = t.map((x) => x.transpose(0, 1) as F); // the sequence is the axis that is spread
      return [attention(q!, k!, v!, { fused: "require" })];
    });
  });
});

const [HEADS, PAGE, D] = [2, 16, 32];
/** All of the arena as pages of that dtype. */
function pages(dtype: FloatDType): F {
  const count = arena.size / (HEADS * PAGE * D * DTYPES[dtype].bytes);
  return at(0, dtype, [count, HEADS, PAGE, D]) as Tensor as F;
}
describe.each(FLOATS)("pages of %s past 2^32 bytes", (dtype) => {
  test.each(["require", "off"] as const)("rows go there and are attended to; fused: %s", (fused) => {
    scope(() => {
      const k = random(dtype, 20, HEADS, D);
      const v = random(dtype, 20, HEADS, D);
      const q = random(dtype, 20, 4, D);
      const run = (kPages: F, vPages: F, numbered: readonly [number, number]): number[] => {
        const slots = int32(Array.from({ length: 20 }, (_, t) => numbered[t >> 4]! * PAGE + (t & 15)));
        kvAppend(k, v, kPages, vPages, slots, { fused });
        const table: PageTable = {
          queryIndptr: int32([0, 20]),
          indptr: int32([0, 2]),
          indices: int32(numbered),
          lengths: int32([20]),
          slots,
          epoch: seed++,
        };
        return numbers(pagedAttention(q, { kPages, vPages, table }, { fused }));
      };
      const small = (): F => random(dtype, 2, HEADS, PAGE, D);
      const all = pages(dtype);
      const half = all.shape[0]! >> 1;
      const [kPages, vPages] = [all.slice(0, 0, half), all.slice(0, half)];
      const expected = run(small(), small(), [0, 1]);
      expect(expected.some((x) => x !== 0)).toBe(true);
      expect(run(kPages as F, vPages as F, [half - 1, half - 3])).toEqual(expected);
      // Token 18 of head 1, where the host looks for it.
      const row = kPages
        .select(0, half - 3)
        .select(0, 1)
        .select(0, 2);
      expect(row.offset * row.data.BYTES_PER_ELEMENT).toBeGreaterThan(2 ** 32);
      expect(numbers(row)).toEqual(numbers(k.select(0, 18).select(0, 1)));
    });
  });
});
test.each(FLOATS)("rows of %s that are normed and rotated on their way go past 2^32 bytes", (dtype) => {
  scope(() => {
    const [q, k, v] = [random(dtype, 2, 4, D), random(dtype, 2, HEADS, D), random(dtype, 2, HEADS, D)];
    const wide = dtype === "float64" ? dtype : "float32";
    const rope = { cos: random(wide, 9, D / 2), sin: random(wide, 9, D / 2), positions: int32([8, 3]) };
    const norm = { q: random(dtype, D), k: random(dtype, D) };
    const run = (pages: F, page: number): number[][] => {
      const target = { kPages: pages.slice(0, 0, page + 1), vPages: pages.slice(0, 1, page + 2) };
      const slots = int32([(page - 1) * PAGE + 7, page * PAGE + 1]);
      const out = normRopeAppend(q, k, v, { ...target, slots }, { norm, rope, fused: "require" });
      const row = (p: Tensor, index: number, at: number): Tensor =>
        p.select(0, index).select(1, at).contiguous();
      const [kPages, vPages] = [target.kPages, target.vPages];
      return [out, row(kPages, page - 1, 7), row(vPages, page, 1)].map(numbers);
    };
    const all = pages(dtype);
    const expected = run(random(dtype, 4, HEADS, PAGE, D), 2);
    for (const result of expected) expect(result.some((x) => x !== 0)).toBe(true);
    expect(run(all, all.shape[0]! - 2)).toEqual(expected);
    const row = all
      .select(0, all.shape[0]! - 3)
      .select(0, 1)
      .select(0, 7) as F;
    expect([...row.data].some((x) => Number(x) !== 0)).toBe(true);
  });
});
test("the arena is larger than any 32-bit number of elements or bytes", () => {
  expect(arena.size).toBeGreaterThanOrEqual(16 * GIB);
  expect(STRIDE).toBeGreaterThan(2 ** 32);
});
