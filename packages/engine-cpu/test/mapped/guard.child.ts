/**
 * Every kernel on operands that end where memory ends: a mapped file's last page has nothing behind it, unlike an allocation, which is
 * rounded up. A read or write past the end ends this process.
 */
import {
  attention,
  attentionVjp,
  cast,
  contiguousStrides,
  type DType,
  DTYPES,
  type FloatDType,
  gather,
  kvAppend,
  linear,
  matmul,
  pagedAttention,
  randn,
  rmsNorm,
  rmsNormBackward,
  rope,
  scatterAdd,
  scope,
  sizeOf,
  softmax,
  Storage,
  sum,
  Tensor,
  tensor,
  toFloat64,
  unary,
} from "@heed/tensor";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cpu } from "../../src/index.ts";

const engine = cpu();
const PAGE = 16384; // a multiple of every page size of this platform
const FLOATS: readonly FloatDType[] = ["float32", "bfloat16", "float16", "float64"];
const SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64, 65];
const folder = mkdtempSync(join(tmpdir(), "heed-guard-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Memory of `bytes` after which there is none: the file's next page is mapped, then cut off. */
function guarded(bytes: number): { buffer: ArrayBuffer; from: number } {
  const room = Math.ceil(bytes / PAGE) * PAGE;
  const path = join(folder, "file");
  writeFileSync(path, new Uint8Array(room + PAGE));
  const { buffer } = Bun.mmap(path, { shared: false });
  truncateSync(path, room);
  new Uint8Array(buffer).fill(0xff, 0, room - bytes); // NaN before the operand
  rmSync(path);
  return { buffer, from: room - bytes };
}
/** A tensor of that kind, filled from `values`, whose last byte is the last there is. */
function atTheEnd<T extends Tensor>(values: T): T {
  const width = DTYPES[values.dtype].bytes;
  const bytes = sizeOf(values.shape) * width;
  const { buffer, from } = guarded(bytes);
  const storage = new Storage(engine.wrap!(buffer), bytes, true);
  const out = new Tensor(
    engine,
    storage,
    values.dtype,
    values.shape,
    contiguousStrides(values.shape),
    from / width,
  );
  engine.copy(values, out);
  return out as Tensor as T;
}
let seed = 1;
const random = (dtype: DType, ...shape: number[]): Tensor<"float32"> =>
  cast(randn(shape, { engine, seed: seed++ }), dtype) as Tensor as Tensor<"float32">;
const int32 = (values: readonly number[]): Tensor<"int32"> =>
  tensor(Int32Array.from(values), undefined, { engine });

/** `f` on operands at the end of memory gives the bits that it gives on allocated ones. */
function check(operands: readonly Tensor[], f: (...t: Tensor<"float32">[]) => readonly Tensor[]): void {
  scope(() => {
    const placed = operands.map((t) => atTheEnd(t)) as Tensor[] as Tensor<"float32">[]; // before f writes to them
    const plain = f(...(operands as readonly Tensor[] as Tensor<"float32">[]));
    const ended = f(...placed);
    expect(ended.map((t) => [...toFloat64(t)])).toEqual(plain.map((t) => [...toFloat64(t)]));
  });
}
describe.each(FLOATS)("operands of %s that end where memory ends", (dtype) => {
  const accumulator = dtype === "float64" ? "float64" : "float32";
  const each = (f: (n: number) => void): void => SIZES.forEach((n) => scope(() => f(n)));
  test("products", () => {
    each((n) => {
      for (const rows of [1, 3, 20])
        for (const k of [1, 7, 33]) {
          check([random(dtype, rows, k), random(dtype, n, k), random(dtype, n)], (x, w, bias) => [
            linear(x!, w!, { bias: bias!, fused: "require" }),
            matmul(w!, x!.transpose()),
            matmul(w!.transpose(), w!),
          ]);
        }
    });
  });
  test("a weight beside wider activations", () => {
    each((n) => {
      for (const k of [5, 33])
        check([random(accumulator, 2, k), random(dtype, n, k)], (x, w) => [
          linear(x!, w!, { fused: "require" }),
        ]);
    });
  });
  test("elementwise, reductions, conversions, rows by index", () => {
    each((n) => {
      const indices = int32([2, 0, 2]);
      check([random(dtype, 3, n)], (x) => [
        unary("exp", x!),
        sum(x!, { axes: [1] }),
        sum(x!, { axes: [0] }),
        softmax(x!),
        cast(x!, "float64"),
        cast(x!, "float32"),
        cast(x!, "bfloat16"),
        x!.transpose().contiguous(),
        gather(x!, indices),
      ]);
      check([random(dtype, 3, n), random(dtype, 3, n)], (x, out) => {
        scatterAdd(x!, indices, out!);
        engine.binary("mul", x!, out!, out!);
        return [out!];
      });
    });
  });
  test("norms and rotations", () => {
    each((n) => {
      check([random(dtype, 3, n), random(dtype, n), random(dtype, 3, n)], (x, w, dOut) => {
        const { x: dx, weight } = rmsNormBackward(x!, w, dOut!, { fused: "require" });
        return [rmsNorm(x!, w, { fused: "require" }), dx, weight!];
      });
      check(
        [random(dtype, 1, 3, 2, 2 * n), random(accumulator, 3, n), random(accumulator, 3, n)],
        (x, cos, sin) => [
          rope(x!, cos!, sin!, { fused: "require" }),
          rope(x!, cos!, sin!, { pairing: "interleaved", fused: "require" }),
        ],
      );
    });
  });
  test("attention and its gradients", () => {
    each((n) => {
      for (const [s, sk] of [
        [1, 9],
        [5, 17],
      ] as const) {
        const operands = [
          random(dtype, 1, s, 2, n),
          random(dtype, 1, sk, 1, n),
          random(dtype, 1, sk, 1, n),
          random(dtype, 1, s, 2, n),
        ];
        check(operands, (q, k, v, dOut) => {
          const { backward } = attentionVjp(q!, k!, v!, { fused: "require" });
          const { q: dq, k: dk, v: dv } = backward(dOut!);
          return [attention(q!, k!, v!, { isCausal: true, fused: "require" }), dq, dk, dv];
        });
      }
    });
  });
  test("pages", () => {
    each((n) => {
      const table = {
        queryIndptr: int32([0, 2]),
        indptr: int32([0, 3]),
        indices: int32([2, 0, 1]),
        lengths: int32([11]),
        slots: int32([3, 11]),
        epoch: seed++,
      };
      const operands = [
        random(dtype, 2, 2, n),
        random(dtype, 3, 1, 4, n),
        random(dtype, 3, 1, 4, n),
        random(dtype, 2, 1, n),
      ];
      check(operands, (q, kPages, vPages, rows) => {
        kvAppend(rows!, rows!, kPages!, vPages!, table.slots, { fused: "require" });
        return [pagedAttention(q!, { kPages: kPages!, vPages: vPages!, table }, { fused: "require" })];
      });
    });
  });
});
test("the guard holds: reading the byte after the end ends a process", () => {
  if (process.env["HEED_READ_PAST_END"] === "1") {
    const { buffer } = guarded(16);
    expect(new Uint8Array(buffer)[PAGE]).toBe(0);
  }
});
