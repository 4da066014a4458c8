import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  kvAppend,
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
const [k, v, kPages, vPages] = [make(2, 3, 4), make(2, 3, 5), make(6, 3, 8, 4), make(6, 3, 8, 5)];
const disposed = make(6, 3, 8, 4);
disposed[Symbol.dispose]();

refuses({
  "k of rank 2": [() => kvAppend(make(2, 12), v, kPages, vPages, int(0, 1)), ShapeError, "k [T, Hkv, D]"],
  "other heads than the pages": [
    () => kvAppend(make(2, 2, 4), v, kPages, vPages, int(0, 1)),
    ShapeError,
    "k [T, Hkv, D]",
  ],
  "v of another width": [() => kvAppend(k, k, kPages, vPages, int(0, 1)), ShapeError, "k [T, Hkv, D]"],
  "more rows than slots": [() => kvAppend(k, v, kPages, vPages, int(0)), ShapeError, "slots int32[1]"],
  "pages of rank 3": [
    () => kvAppend(k, v, make(3, 8, 4), make(3, 8, 5), int(0, 1)),
    ShapeError,
    "pages [P, Hkv, pageSize, D or Dv]",
  ],
  "key and value pages of different sizes": [
    () => kvAppend(k, v, kPages, make(6, 3, 4, 5), int(0, 1)),
    ShapeError,
    "pages",
  ],
  "a slot past the pages": [
    () => kvAppend(k, v, kPages, vPages, int(0, 48)),
    ArgumentError,
    "slot 48 of row 1 is outside -1..47",
  ],
  "a slot below -1": [() => kvAppend(k, v, kPages, vPages, int(-2, 0)), ArgumentError, "slot -2 of row 0"],
  "float slots": [() => kvAppend(k, v, kPages, vPages, any(make(2))), DTypeError, "slots"],
  "slots of rank 2": [() => kvAppend(k, v, kPages, vPages, any(int(0, 1).unsqueeze(0))), ShapeError, "slots"],
  "k and v of different dtypes": [
    () => kvAppend(k, ones([2, 3, 5], { ...on, dtype: "float16" }), kPages, vPages, int(0, 1)),
    DTypeError,
    "one dtype",
  ],
  "integer pages": [
    () => kvAppend(k, v, ones([6, 3, 8, 4], { ...on, dtype: "int32" }), vPages, int(0, 1)),
    DTypeError,
    "float dtype",
  ],
  "disposed pages": [() => kvAppend(k, v, disposed, vPages, int(0, 1)), DisposedError, "disposed"],
  "pages on another engine": [
    () => kvAppend(k, v, ones([6, 3, 8, 4], { engine: fakeEngine() }), vPages, int(0, 1)),
    DeviceError,
    "different engines",
  ],
});
describe.each([...engines])("kvAppend on %s", (engine) => {
  test("a refused call writes nothing", () => {
    scope(() => {
      const pages = zeros([2, 1, 2, 1], { engine });
      const rows = ones([3, 1, 1], { engine });
      const slots = tensor([0, 1, 4], undefined, { engine, dtype: "int32" });
      expect(() => kvAppend(rows, rows, pages, pages, slots)).toThrow(ArgumentError);
      expect([...toFloat64(pages)]).toEqual([0, 0, 0, 0]);
    });
  });
  test("rows and pages may be any view", () => {
    scope(() => {
      const pages = zeros([1, 2, 2, 2], { engine }).transpose(2, 3); // [P, Hkv, pageSize, D]
      const rows = tensor([1, 2, 3, 4], [1, 2, 2], { engine }).transpose(1, 2); // [T, Hkv, D]
      const slots = tensor([1], undefined, { engine, dtype: "int32" });
      kvAppend(rows, rows, pages, zeros([1, 2, 2, 2], { engine }), slots);
      expect([...toFloat64(pages)]).toEqual([0, 0, 1, 3, 0, 0, 2, 4]);
    });
  });
  test("no rows are no work", () => {
    scope(() => {
      const pages = ones([1, 1, 1, 1], { engine });
      kvAppend(
        ones([0, 1, 1], { engine }),
        ones([0, 1, 1], { engine }),
        pages,
        pages,
        tensor([], [0], { engine, dtype: "int32" }),
      );
      expect([...toFloat64(pages)]).toEqual([1]);
    });
  });
});
