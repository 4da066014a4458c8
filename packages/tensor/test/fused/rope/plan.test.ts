import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  ones,
  rope,
  ropeBackward,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const int = (values: number[], shape?: number[]): Tensor<"int32"> =>
  tensor(values, shape, { ...on, dtype: "int32" });
const any = (x: unknown): never => x as never;
const [x, table] = [make(2, 3, 2, 8), make(10, 4)];
const disposed = make(10, 4);
disposed[Symbol.dispose]();
const turn = (positions: Tensor<"int32">) => () => rope(x, table, table, { positions });

refuses({
  "x of rank 2": [() => rope(make(3, 8), table, table), ShapeError, "[B, S, H, D]"],
  "x of rank 5": [() => rope(make(1, 2, 3, 2, 8), table, table), ShapeError, "[B, S, H, D]"],
  "tables of rank 1": [() => rope(x, make(4), make(4)), ShapeError, "[P, rotaryDim / 2]"],
  "a scalar table": [() => rope(x, make(), make()), ShapeError, "[P, rotaryDim / 2]"],
  "tables that differ": [() => rope(x, table, make(10, 3)), ShapeError, "[P, rotaryDim / 2]"],
  "tables wider than the head": [() => rope(x, make(10, 5), make(10, 5)), ShapeError, "D = 8"],
  "tables of another dtype": [
    () => rope(x, ones([10, 4], { ...on, dtype: "float64" }), table),
    DTypeError,
    "float32",
  ],
  "tables in the dtype of a 16-bit x": [
    () =>
      rope(
        ones([1, 1, 1, 8], { ...on, dtype: "float16" }),
        ones([10, 4], { ...on, dtype: "float16" }),
        ones([10, 4], { ...on, dtype: "float16" }),
      ),
    DTypeError,
    "must be float32",
  ],
  "more tokens than rows": [
    () => rope(x, make(2, 4), make(2, 4)),
    ArgumentError,
    "position 2 is outside the tables of 2 rows",
  ],
  "a negative position": [turn(int([0, -1, 2])), ArgumentError, "position -1"],
  "a position past the tables": [turn(int([0, 1, 10])), ArgumentError, "position 10"],
  "positions for other tokens": [turn(int([0, 1])), ShapeError, "int32[2, 3]"],
  "positions for another batch": [turn(int([0, 1, 2], [1, 3])), ShapeError, "int32[2, 3]"],
  "float positions": [() => rope(x, table, table, { positions: any(make(3)) }), DTypeError, "positions"],
  integers: [() => rope(any(int([1], [1, 1, 1, 1])), table, table), DTypeError, "float dtype"],
  "an unknown pairing": [() => rope(x, table, table, { pairing: any("pairs") }), ArgumentError, "pairing"],
  "a disposed table": [() => rope(x, table, disposed), DisposedError, "disposed"],
  "a table on another engine": [
    () => rope(x, table, ones([10, 4], { engine: fakeEngine() })),
    DeviceError,
    "different engines",
  ],
});
describe.each([...engines])("rope on %s", (engine) => {
  const on = { engine, dtype: "float64" } as const;
  const list = (t: Tensor): number[] => [...toFloat64(t)];
  const frequencies = [1, 0.01];
  const tables = (): [Tensor, Tensor] => [
    tensor(
      [0, 1].flatMap((p) => frequencies.map((f) => Math.cos(p * f))),
      [2, 2],
      on,
    ),
    tensor(
      [0, 1].flatMap((p) => frequencies.map((f) => Math.sin(p * f))),
      [2, 2],
      on,
    ),
  ];
  test("known answer: D = 4, base 10000, positions 0 and 1, rotate-half", () => {
    scope(() => {
      const got = list(rope(tensor([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 1, 4], on), ...tables()));
      assertClose(got.slice(0, 4), [1, 2, 3, 4], { rel: 0 });
      assertClose(
        got.slice(4),
        [-3.1887853643145765, 5.919701335826659, 7.9894710651164615, 8.059599003338322],
        { rel: 1e-15 },
      );
    });
  });
  test("the pairings are the same rotation of components in another order", () => {
    scope(() => {
      const half = list(rope(tensor([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 1, 4], on), ...tables()));
      const x = tensor([1, 3, 2, 4, 5, 7, 6, 8], [1, 2, 1, 4], on);
      const [a, b, c, d] = list(rope(x, ...tables(), { pairing: "interleaved" })).slice(4) as [
        number,
        number,
        number,
        number,
      ];
      expect([a, c, b, d]).toEqual(half.slice(4));
    });
  });
  test("backward turns back: the composition is the identity", () => {
    scope(() => {
      const x = tensor([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 1, 4], on);
      assertClose(list(ropeBackward(rope(x, ...tables()), ...tables())), list(x), { rel: 1e-15 });
    });
  });
  test("tables without columns rotate nothing", () => {
    scope(() => {
      const x = tensor([1, 2, 3], [1, 1, 1, 3], on);
      for (const pairing of ["half", "interleaved"] as const) {
        expect(list(rope(x, ones([1, 0], on), ones([1, 0], on), { pairing }))).toEqual([1, 2, 3]);
      }
    });
  });
  test("no tokens, heads or batch give an empty result", () => {
    scope(() => {
      for (const shape of [
        [0, 2, 1, 4],
        [1, 0, 1, 4],
        [1, 2, 0, 4],
        [0, 1, 4],
      ]) {
        expect(rope(ones(shape, on), ...tables()).shape).toEqual(shape);
      }
    });
  });
});
