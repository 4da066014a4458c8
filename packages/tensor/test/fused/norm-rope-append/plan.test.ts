import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  type NormRopeAppendOptions,
  normRopeAppend,
  ones,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const int = (...values: number[]): Tensor<"int32"> => tensor(values, undefined, { ...on, dtype: "int32" });
const any = (x: unknown): never => x as never;
const [q, k, v] = [make(2, 6, 4), make(2, 3, 4), make(2, 3, 5)];
const target = { kPages: make(6, 3, 8, 4), vPages: make(6, 3, 8, 5), slots: int(0, 1) };
const turn = { cos: make(9, 2), sin: make(9, 2), positions: int(3, 8) };
const run = (options: NormRopeAppendOptions) => (): unknown => normRopeAppend(q, k, v, target, options);
const disposed = make(4);
disposed[Symbol.dispose]();

refuses({
  "q of rank 2": [() => normRopeAppend(make(2, 24), k, v, target), ShapeError, "q [T, Hq, D]"],
  "k of rank 2": [() => normRopeAppend(q, make(2, 12), v, target), ShapeError, "k [T, Hkv, D]"],
  "more queries than keys": [
    () => normRopeAppend(make(3, 6, 4), k, v, target),
    ShapeError,
    "q float32[3, 6, 4]",
  ],
  "queries of another width": [
    () => normRopeAppend(make(2, 6, 5), k, v, target),
    ShapeError,
    "q float32[2, 6, 5]",
  ],
  "values of another width": [() => normRopeAppend(q, k, k, target), ShapeError, "v [T, Hkv, Dv]"],
  "q of another dtype": [
    () => normRopeAppend(any(ones([2, 6, 4], { ...on, dtype: "float16" })), k, v, target),
    DTypeError,
    "one dtype",
  ],
  "integer rows": [
    () => normRopeAppend(any(ones([2, 6, 4], { ...on, dtype: "int32" })), k, v, target),
    DTypeError,
    "float dtype",
  ],
  "a slot past the pages": [
    () => normRopeAppend(q, k, v, { ...target, slots: int(0, 48) }),
    ArgumentError,
    "slot 48 of row 1 is outside -1..47",
  ],
  "a weight of another width": [run({ norm: { q: make(5) } }), ShapeError, "weight must be [4]"],
  "a weight over other heads": [run({ norm: { k: make(6, 4) } }), ShapeError, "weight must be [3, 4]"],
  "a weight of rank 3": [
    run({ norm: { q: make(2, 6, 4) } }),
    ShapeError,
    "norm weights must be [D] or [H, D]",
  ],
  "a weight of rank 0": [run({ norm: { q: tensor(1, [], on) } }), ShapeError, "norm weights must be [D]"],
  "an integer weight": [run({ norm: { q: any(int(1, 1, 1, 1)) } }), DTypeError, "float dtype"],
  "an eps below 0": [run({ norm: { q: make(4), eps: -1 } }), ArgumentError, "eps must be at least 0"],
  "a position past the tables": [
    run({ rope: { ...turn, positions: int(0, 9) } }),
    ArgumentError,
    "position 9 is outside the tables of 9 rows",
  ],
  "a position below 0": [run({ rope: { ...turn, positions: int(-1, 0) } }), ArgumentError, "position -1"],
  "fewer positions than tokens": [run({ rope: { ...turn, positions: int(0) } }), ShapeError, "positions"],
  "tables wider than a head": [
    run({ rope: { ...turn, cos: make(9, 3), sin: make(9, 3) } }),
    ShapeError,
    "D = 4",
  ],
  "tables of different shapes": [run({ rope: { ...turn, sin: make(8, 2) } }), ShapeError, "cos and sin"],
  "tables of another dtype": [
    run({ rope: { ...turn, cos: ones([9, 2], { ...on, dtype: "float64" }) } }),
    DTypeError,
    "tables must be float32",
  ],
  "a pairing that there is not": [
    run({ rope: { ...turn, pairing: any("pairs") } }),
    ArgumentError,
    "pairing must be",
  ],
  "a disposed weight": [run({ norm: { k: disposed } }), DisposedError, "disposed"],
  "a table on another engine": [
    run({ rope: { ...turn, cos: ones([9, 2], { engine: fakeEngine() }) } }),
    DeviceError,
    "different engines",
  ],
  "pages on another engine": [
    () => normRopeAppend(q, k, v, { ...target, kPages: ones([6, 3, 8, 4], { engine: fakeEngine() }) }),
    DeviceError,
    "different engines",
  ],
});
describe.each([...engines])("normRopeAppend on %s", (engine) => {
  const at = { engine } as const;
  const slotsOf = (...values: number[]): Tensor<"int32"> =>
    tensor(values, [values.length], { engine, dtype: "int32" });
  test("a refused call writes nothing", () => {
    scope(() => {
      const pages = zeros([2, 1, 2, 2], at);
      const rows = ones([3, 1, 2], at);
      const table = ones([4, 1], at);
      const refused = [
        () => normRopeAppend(rows, rows, rows, { kPages: pages, vPages: pages, slots: slotsOf(0, 1, 4) }),
        () =>
          normRopeAppend(
            rows,
            rows,
            rows,
            { kPages: pages, vPages: pages, slots: slotsOf(0, 1, 2) },
            { rope: { cos: table, sin: table, positions: slotsOf(0, 1, 4) } },
          ),
      ];
      for (const call of refused) expect(call).toThrow(ArgumentError);
      expect([...toFloat64(pages)]).toEqual(new Array<number>(8).fill(0));
    });
  });
  test("a row that is skipped still has its queries", () => {
    scope(() => {
      const pages = (): Tensor => zeros([1, 1, 2, 2], at);
      const rows = tensor([[[3, 4]], [[6, 8]]], undefined, at) as Tensor<"float32">;
      const kept = { kPages: pages(), vPages: pages(), slots: slotsOf(-1, 0) };
      const table = tensor([[0], [1]], undefined, at);
      const rope = { cos: table, sin: tensor([[1], [0]], undefined, at), positions: slotsOf(0, 1) };
      const out = normRopeAppend(rows, rows, rows, kept, { rope }); // a quarter turn, and none
      expect([...toFloat64(out)]).toEqual([-4, 3, 6, 8]);
      expect([...toFloat64(kept.kPages)]).toEqual([6, 8, 0, 0]);
      expect([...toFloat64(kept.vPages)]).toEqual([6, 8, 0, 0]);
    });
  });
  test("norms over a head and over all heads have their known answers", () => {
    scope(() => {
      const pages = { kPages: zeros([1, 2, 1, 2], at), vPages: zeros([1, 2, 1, 2], at), slots: slotsOf(0) };
      const rows = tensor([3, 4, 0, 10], [1, 2, 2], at) as Tensor<"float32">;
      const norm = { q: ones([2], at), k: zeros([2, 2], at), eps: 0, unitOffset: true };
      const perHead = [...toFloat64(normRopeAppend(rows, rows, rows, pages, { norm }))];
      // Mean squares 12.5 and 50 of the heads, 31.25 of both; 1 + weight is 2 and 1.
      [6 / Math.sqrt(12.5), 8 / Math.sqrt(12.5), 0, 20 / Math.sqrt(50)].forEach((x, i) =>
        expect(perHead[i]).toBeCloseTo(x, 5),
      );
      const all = [...toFloat64(pages.kPages)];
      [3, 4, 0, 10].forEach((x, i) => expect(all[i]).toBeCloseTo(x / Math.sqrt(31.25), 5));
      expect([...toFloat64(pages.vPages)]).toEqual([3, 4, 0, 10]);
    });
  });
  test("no rows are no work, and no queries none for them", () => {
    scope(() => {
      const pages = { kPages: ones([1, 1, 1, 2], at), vPages: ones([1, 1, 1, 2], at) };
      const none = ones([0, 1, 2], at);
      const out = normRopeAppend(none, none, none, { ...pages, slots: slotsOf() });
      expect(out.shape).toEqual([0, 1, 2]);
      const rows = zeros([1, 1, 2], at);
      const noHeads = normRopeAppend(ones([1, 0, 2], at), rows, rows, { ...pages, slots: slotsOf(0) });
      expect(noHeads.shape).toEqual([1, 0, 2]);
      expect([...toFloat64(pages.kPages)]).toEqual([0, 0]);
    });
  });
});
