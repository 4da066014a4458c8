import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  ones,
  pagedAttention,
  pagedAttentionWithLse,
  type PagedView,
  type PageTable,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

type Lists = Partial<Record<"queryIndptr" | "indptr" | "indices" | "lengths", number[]>>;
let epoch = 0;
/** Two sequences of 5 and 3 tokens in pages of 4, with 2 and 1 queries, unless said otherwise. */
function tableOf(lists: Lists = {}, engine = "portable"): PageTable {
  const int = (values: number[]): Tensor<"int32"> => tensor(values, undefined, { engine, dtype: "int32" });
  const { queryIndptr = [0, 2, 3], indptr = [0, 2, 3], indices = [1, 0, 2], lengths = [5, 3] } = lists;
  return {
    queryIndptr: int(queryIndptr),
    indptr: int(indptr),
    indices: int(indices),
    lengths: int(lengths),
    slots: int([-1, -1, -1]),
    epoch: epoch++,
  };
}
const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const any = (x: unknown): never => x as never;
const q = make(3, 4, 8);
const [kPages, vPages] = [make(4, 2, 4, 8), make(4, 2, 4, 6)];
const view = (lists: Lists = {}): PagedView => ({ kPages, vPages, table: tableOf(lists) });
const attend = (lists: Lists) => () => pagedAttention(q, view(lists));
const disposed = make(4, 2, 4, 8);
disposed[Symbol.dispose]();

refuses({
  "q of rank 4": [() => pagedAttention(make(1, 3, 4, 8), view()), ShapeError, "q [T, Hq, D]"],
  "another head size than the pages'": [
    () => pagedAttention(make(3, 4, 6), view()),
    ShapeError,
    "q [T, Hq, D]",
  ],
  "query heads that are no multiple": [
    () => pagedAttention(make(3, 3, 8), view()),
    ShapeError,
    "Hq a multiple of Hkv",
  ],
  "pages of rank 3": [() => pagedAttention(q, { ...view(), kPages: make(2, 4, 8) }), ShapeError, "kPages"],
  "value pages of another number": [
    () => pagedAttention(q, { ...view(), vPages: make(3, 2, 4, 6) }),
    ShapeError,
    "vPages",
  ],
  "values without width": [
    () => pagedAttention(q, { ...view(), vPages: make(4, 2, 4, 0) }),
    ShapeError,
    "vPages",
  ],
  "key and value pages of two dtypes": [
    () => pagedAttention(q, { ...view(), vPages: ones([4, 2, 4, 6], { ...on, dtype: "float16" }) }),
    DTypeError,
    "one dtype",
  ],
  "float64 queries over float32 pages": [
    () => pagedAttention(ones([3, 4, 8], { ...on, dtype: "float64" }), view()),
    DTypeError,
    "float64 exactly when q is",
  ],
  "integer pages": [
    () => pagedAttention(q, { ...view(), kPages: any(ones([4, 2, 4, 8], { ...on, dtype: "int32" })) }),
    DTypeError,
    "float dtype",
  ],
  "queries that do not start at 0": [
    attend({ queryIndptr: [1, 2, 3] }),
    ArgumentError,
    "queryIndptr must start at 0",
  ],
  "queries that fall": [attend({ queryIndptr: [0, 4, 3] }), ArgumentError, "must not fall"],
  "queries that do not cover q": [attend({ queryIndptr: [0, 1, 2] }), ArgumentError, "must end at 3"],
  "an indptr for other sequences": [attend({ indptr: [0, 2] }), ShapeError, "indptr must be int32[3]"],
  "an indptr past the indices": [attend({ indptr: [0, 2, 4] }), ArgumentError, "indptr must end at 3"],
  "an indptr that falls": [attend({ indptr: [0, 3, 2] }), ArgumentError, "must not fall"],
  "a negative indptr": [attend({ indptr: [0, -1, 3] }), ArgumentError, "must not fall"],
  "more tokens than pages hold": [
    attend({ lengths: [9, 3] }),
    ArgumentError,
    "sequence 0 has 9 tokens, but its 2 pages of 4 hold at most 8",
  ],
  "a negative length": [attend({ lengths: [5, -1] }), ArgumentError, "sequence 1 has -1 tokens"],
  "more queries than tokens": [
    attend({ lengths: [1, 3] }),
    ArgumentError,
    "sequence 0 has 2 queries but only 1 tokens",
  ],
  "a page that is not there": [attend({ indices: [1, 0, 4] }), ArgumentError, "page 4 at 2 is outside 0..3"],
  "a negative page": [attend({ indices: [1, -1, 2] }), ArgumentError, "page -1"],
  "a table in floats": [
    () => pagedAttention(q, { ...view(), table: { ...tableOf(), lengths: any(make(2)) } }),
    DTypeError,
    "lengths",
  ],
  "disposed pages": [() => pagedAttention(q, { ...view(), kPages: disposed }), DisposedError, "disposed"],
  "pages on another engine": [
    () => pagedAttention(q, { ...view(), kPages: ones([4, 2, 4, 8], { engine: fakeEngine() }) }),
    DeviceError,
    "different engines",
  ],
  "a window of NaN": [
    () => pagedAttention(q, view(), { window: { left: NaN } }),
    ArgumentError,
    "window.left",
  ],
  "sink tokens of NaN": [
    () => pagedAttention(q, view(), { sinkTokens: NaN }),
    ArgumentError,
    "[pagedAttention] sinkTokens",
  ],
  "more sink tokens than the pages keep": [
    () => pagedAttention(q, { ...view(), keptSinks: 1 }, { window: { left: 0 }, sinkTokens: 2 }),
    ArgumentError,
    "sinkTokens must be at most the 1 first tokens whose pages the cache keeps; got 2",
  ],
  "sinks for other heads": [() => pagedAttention(q, view(), { sinks: make(2) }), ShapeError, "sinks"],
});
test("a table that changed under a new epoch is checked again", () => {
  const table = { ...tableOf() };
  pagedAttention(q, { kPages, vPages, table });
  table.indices.data[0] = 99;
  const next: PageTable = Object.assign(table, { epoch: table.epoch + 1 });
  expect(() => pagedAttention(q, { kPages, vPages, table: next })).toThrow(ArgumentError);
});
describe.each([...engines])("pagedAttention on %s", (engine) => {
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  test("no queries give an empty result", () => {
    scope(() => {
      const pages = ones([4, 2, 4, 8], { engine });
      const none = tableOf({ queryIndptr: [0, 0, 0] }, engine);
      expect(
        pagedAttention(ones([0, 4, 8], { engine }), { kPages: pages, vPages: pages, table: none }).shape,
      ).toEqual([0, 4, 8]);
      const empty = tableOf({ queryIndptr: [0], indptr: [0], indices: [], lengths: [] }, engine);
      const { output, lse } = pagedAttentionWithLse(ones([0, 4, 8], { engine }), {
        kPages: pages,
        vPages: pages,
        table: empty,
      });
      expect([output.shape, lse.shape]).toEqual([
        [0, 4, 8],
        [0, 4],
      ]);
    });
  });
  test("isCausal is the default, and can be turned off", () => {
    scope(() => {
      const zero = tensor(new Float32Array(8), [1, 1, 8, 1], { engine });
      const values = tensor([1, 2, 4, 8, 16, 32, 64, 128], [1, 1, 8, 1], { engine });
      const table = tableOf({ queryIndptr: [0, 2], indptr: [0, 1], indices: [0], lengths: [2] }, engine);
      const rows = ones([2, 1, 1], { engine });
      const paged = { kPages: zero, vPages: values, table };
      expect(list(pagedAttention(rows, paged))).toEqual([1, 1.5]);
      expect(list(pagedAttention(rows, paged, { isCausal: false }))).toEqual([1.5, 1.5]);
    });
  });
  test("two sequences that share a page read it both", () => {
    scope(() => {
      const zero = tensor(new Float32Array(2), [1, 1, 2, 1], { engine });
      const values = tensor([1, 3], [1, 1, 2, 1], { engine });
      const table = tableOf(
        { queryIndptr: [0, 1, 2], indptr: [0, 1, 2], indices: [0, 0], lengths: [1, 2] },
        engine,
      );
      expect(
        list(pagedAttention(ones([2, 1, 1], { engine }), { kPages: zero, vPages: values, table })),
      ).toEqual([1, 2]);
    });
  });
});
