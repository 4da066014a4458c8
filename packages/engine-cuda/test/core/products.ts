import type { DType, Engine, FusedOp, LinearPlan } from "@heed/tensor";
import { FLOATS, type Layout, elements, expectElements, place, rounded } from "@heed/testkit/core/strided";
import { describe, test } from "bun:test";

/** How a matrix lies: dense along rows or columns, each of a multiple of 8 elements or not; with gaps, from an odd element on; strided both ways. */
const LIES = ["rows", "columns", "gaps", "steps"] as const;
type Lies = (typeof LIES)[number];

function layout(rows: number, columns: number, lies: Lies): Layout {
  const shape = [rows, columns];
  if (lies === "rows") return { shape, strides: [columns, 1], offset: 0, length: rows * columns };
  if (lies === "columns") return { shape, strides: [1, rows], offset: 0, length: rows * columns };
  if (lies === "gaps")
    return { shape, strides: [columns + 3, 1], offset: 1, length: rows * (columns + 3) + 1 };
  return { shape, strides: [3 * columns, 3], offset: 2, length: 3 * rows * columns + 2 };
}
/** Small whole numbers, of which sums of products are exact in float32. */
const whole = (n: number, seed: number): number[] =>
  Array.from({ length: n }, (_, i) => ((i * seed) % 7) - 3);

function product(a: readonly number[], b: readonly number[], M: number, N: number, K: number): number[] {
  return Array.from({ length: M * N }, (_, at) => {
    const [row, column] = [Math.floor(at / N), at % N];
    let sum = 0;
    for (let k = 0; k < K; k++) sum += a[row * K + k]! * b[k * N + column]!;
    return sum;
  });
}
/** A product of whole numbers and its result, for any way that they may lie. */
interface Problem {
  readonly sizes: readonly [number, number, number];
  readonly a: readonly number[];
  readonly b: readonly number[];
  readonly expected: readonly number[];
}
function problem(M: number, K: number, N: number): Problem {
  const a = whole(M * K, 5);
  const b = whole(K * N, 11);
  return { sizes: [M, K, N], a, b, expected: product(a, b, M, N, K) };
}
async function check(
  engine: Engine,
  [dtype, right]: readonly [DType, DType],
  { sizes: [M, K, N], a: left, b: other, expected }: Problem,
  [ofA, ofB, ofOut]: readonly [Lies, Lies, Lies],
): Promise<void> {
  using a = place(engine, dtype, layout(M, K, ofA), left);
  using b = place(engine, right, layout(K, N, ofB), other);
  using out = place(engine, dtype, layout(M, N, ofOut)); // NaN: beta 0 must not read it
  engine.matmul(a, b, out, 1, 0);
  await expectElements(
    out,
    expected.map((x) => rounded(dtype, x)),
  );
}
const PAIRS: readonly (readonly [DType, DType])[] = [
  ...FLOATS.map((d) => [d, d] as const),
  ["float32", "float16"],
  ["float32", "bfloat16"],
];
// Whole tiles, tails in every direction, one chunk, more than the 8 tiles of a group.
const SIZES = [
  [128, 64, 128],
  [136, 72, 200],
  [72, 8, 24],
  [77, 41, 69],
  [600, 40, 72],
] as const;

/** Products by tiles: every way that each operand may lie. */
export function productSuite(engine: Engine): void {
  describe.each(PAIRS)("a product of %s by %s", (dtype, right) => {
    test.each(SIZES)("of %d x %d by %d, wherever the operands lie", async (M, K, N) => {
      const given = problem(M, K, N);
      for (const a of LIES)
        for (const b of LIES) await check(engine, [dtype, right], given, [a, b, a === b ? "rows" : a]);
    });
    test("of a few rows, whose weight is dense along the depth", async () => {
      for (const M of [1, 2, 5, 8])
        for (const [K, N] of [
          [64, 40],
          [100, 37],
          [1000, 3],
          [3, 1],
        ] as const) {
          const given = problem(M, K, N);
          for (const a of LIES) await check(engine, [dtype, right], given, [a, "columns", a]);
        }
    });
    test("of a few rows: each row has the bits it has alone", async () => {
      const [M, K, N] = [7, 333, 21];
      const values = Array.from({ length: M * K }, (_, i) => rounded(dtype, Math.sin(i)));
      const weights = Array.from({ length: K * N }, (_, i) => rounded(right, Math.cos(3 * i)));
      using a = place(engine, dtype, layout(M, K, "rows"), values);
      using b = place(engine, right, layout(K, N, "columns"), weights);
      using all = place(engine, dtype, layout(M, N, "rows"));
      engine.matmul(a, b, all, 1, 0);
      const together = await elements(all);
      for (let row = 0; row < M; row++) {
        using one = place(engine, dtype, layout(1, N, "rows"));
        using x = a.slice(0, row, row + 1);
        engine.matmul(x, b, one, 1, 0);
        await expectElements(one, together.slice(row * N, (row + 1) * N));
      }
    });
  });
  test("a value outside an operand's rows or depth reaches no result", async () => {
    for (const dtype of ["float16", "float32"] as const) {
      using a = place(engine, dtype, layout(40, 24, "gaps"), whole(40 * 24, 5));
      using b = place(engine, dtype, layout(24, 40, "gaps"), whole(24 * 40, 11));
      const [wide, deep] = [a.slice(0, 8, 24), b.slice(1, 16, 32)];
      using out = place(engine, dtype, layout(16, 16, "rows"));
      engine.matmul(wide, deep, out, 1, 0);
      const expected = product(
        (await elements(wide)) as number[],
        (await elements(deep)) as number[],
        16,
        16,
        24,
      );
      await expectElements(out, expected);
      wide[Symbol.dispose]();
      deep[Symbol.dispose]();
    }
  });
}
/** Linear maps: the bias is added before the one rounding. */
export function linearSuite(engine: Engine, linear: FusedOp<LinearPlan>): void {
  describe("linear", () => {
    test.each(PAIRS)("%s by %s, with a bias and without", async (dtype, right) => {
      for (const [M, K, N] of [
        [1, 72, 40],
        [70, 72, 136],
        [12, 19, 33],
      ] as const) {
        for (const step of [0, 1, 2]) {
          using x = place(engine, dtype, layout(M, K, "rows"), whole(M * K, 5));
          using weight = place(engine, right, layout(N, K, "rows"), whole(N * K, 11));
          const biasAt = { shape: [N], strides: [step], offset: 1, length: Math.max(step, 1) * N + 1 };
          using bias = place(engine, dtype, biasAt, whole(N, 3));
          using out = place(engine, dtype, layout(M, N, "gaps"));
          const given = step === 0 ? undefined : bias;
          linear.run({ engine, x, weight, bias: given, out } as unknown as LinearPlan);
          using turned = weight.transpose();
          const sums = product(
            (await elements(x)) as number[],
            (await elements(turned)) as number[],
            M,
            N,
            K,
          );
          const added = given === undefined ? [] : ((await elements(given)) as number[]);
          await expectElements(
            out,
            sums.map((s, i) => rounded(dtype, s + (added[i % N] ?? 0))),
          );
        }
      }
    });
  });
}
/** A batch with an operand that repeats, one that is permuted, and rows that a batch axis continues. */
export function batchSuite(engine: Engine): void {
  test.each(FLOATS)("a batch of products of %s, shared, permuted and folded", async (dtype) => {
    const [B, H, M, K, N] = [2, 3, 20, 24, 16];
    const grid = (
      lead: readonly number[],
      leadSteps: readonly number[],
      rows: number,
      columns: number,
      length: number,
    ): Layout => ({
      shape: [...lead, rows, columns],
      strides: [...leadSteps, columns, 1],
      offset: 0,
      length,
    });
    const cases = [
      // a [B, H, M, K] @ b [K, N], one product of B * H * M rows
      [grid([B, H], [H * M * K, M * K], M, K, B * H * M * K), grid([B, H], [0, 0], K, N, K * N)],
      // a shared by the batch, b not
      [grid([B, H], [0, 0], M, K, M * K), grid([B, H], [H * K * N, K * N], K, N, B * H * K * N)],
      // [B, M, H, K] seen as [B, H, M, K], as attention has it
      [
        { shape: [B, H, M, K], strides: [M * H * K, K, H * K, 1], offset: 0, length: B * M * H * K },
        grid([B, H], [H * K * N, K * N], K, N, B * H * K * N),
      ],
    ] as const;
    for (const [aAt, bAt] of cases) {
      using a = place(engine, dtype, aAt, whole(B * H * M * K, 5));
      using b = place(engine, dtype, bAt, whole(B * H * K * N, 11));
      using out = place(engine, dtype, grid([B, H], [H * M * N, M * N], M, N, B * H * M * N));
      engine.matmul(a, b, out, 1, 0);
      const [x, y] = [(await elements(a)) as number[], (await elements(b)) as number[]];
      const expected = Array.from({ length: B * H }, (_, i) =>
        product(x.slice(i * M * K, (i + 1) * M * K), y.slice(i * K * N, (i + 1) * K * N), M, N, K),
      ).flat();
      await expectElements(
        out,
        expected.map((v) => rounded(dtype, v)),
      );
    }
  });
  test("more matrices than a grid has rows of blocks", async () => {
    const n = 65_540;
    const at = (rows: number, columns: number): Layout => ({
      shape: [n, rows, columns],
      strides: [rows * columns, columns, 1],
      offset: 0,
      length: n * rows * columns,
    });
    using a = place(engine, "float32", at(1, 2), whole(2 * n, 5));
    using b = place(engine, "float32", at(2, 1), whole(2 * n, 11));
    using out = place(engine, "float32", at(1, 1));
    engine.matmul(a, b, out, 1, 0);
    const [x, y] = [whole(2 * n, 5), whole(2 * n, 11)];
    await expectElements(
      out,
      Array.from({ length: n }, (_, i) => x[2 * i]! * y[2 * i]! + x[2 * i + 1]! * y[2 * i + 1]!),
    );
  });
}
