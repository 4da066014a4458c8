/** The memory of a group's pages, and arithmetic on memory that is not there. */
import { portable } from "@heed/engine-cpu";
import {
  ArgumentError,
  copyInto,
  DeviceError,
  type Engine,
  getEngine,
  memoryUsage,
  OutOfMemoryError,
  scope,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { createRng, floatDTypes } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import type { GroupLayout } from "../src/index.ts";
import { PageStorage } from "../src/storage.ts";
import { engines } from "./engines.ts";
import { floats } from "./fixtures.ts";

const layoutOf = (options: Partial<GroupLayout> = {}): GroupLayout => ({
  layers: [3, 5],
  numKvHeads: 2,
  headDim: 3,
  valueHeadDim: 2,
  valuesInKeys: false,
  window: Infinity,
  sinks: 0,
  pageSize: 4,
  layout: "head-major",
  dtype: "float32",
  ...options,
});
const tensorsOf = (storage: PageStorage): Tensor[] => {
  const { valuesInKeys, layers } = storage.layout;
  return layers.flatMap((_, i) => (valuesInKeys ? [storage.k(i)] : [storage.k(i), storage.v(i)])) as Tensor[];
};
function fillRandom(storage: PageStorage, seed = 1): void {
  const rng = createRng(seed);
  for (const t of tensorsOf(storage)) {
    scope(() => copyInto(floats(rng.normalArray(t.size), t.shape, t.dtype as "float32", t.engine), t));
  }
}
const pageOf = (storage: PageStorage, page: number): number[][] =>
  scope(() => tensorsOf(storage).map((t) => Array.from(toFloat64(t.select(0, page)))));
const kinds = [
  {},
  { layout: "token-major" },
  { valuesInKeys: true },
  { valuesInKeys: true, layout: "token-major" },
] as const;

describe.each(engines)("page storage on %s", (name) => {
  const engine = getEngine(name);

  test.each(["head-major", "token-major"] as const)(
    "pages of int4 and, behind them, residual pages are read and written by themselves: %s",
    (layout) => {
      const g = layoutOf({ dtype: "int4", residualDtype: "float16", layout });
      using storage = new PageStorage(engine, g, 3, 2);
      expect(storage.byteLength).toBe(4 * storage.pageBytes + 2 * storage.residualPageBytes);
      const bytesFor = (page: number): Uint8Array<ArrayBuffer> =>
        Uint8Array.from({ length: storage.bytesOf(page) }, (_, i) => (i * 31 + page) % 120);
      for (const page of [1, 2, 3, 4, 5]) storage.writePage(page, bytesFor(page));
      for (const page of [1, 2, 3, 4, 5]) expect(storage.readPage(page)).toEqual(bytesFor(page));
      storage.copyRows(4, 5, 2);
      expect(storage.readPage(5, 2)).toEqual(storage.readPage(4, 2));
      expect(storage.readPage(4, 2).filter((byte) => byte !== 0).length).toBeLessThanOrEqual(
        storage.bytesOf(4) / 2,
      );
      expect(storage.readPage(3)).toEqual(bytesFor(3));
      expect(() => storage.writePage(4, bytesFor(1))).toThrow(ArgumentError);
      expect(() => storage.readPage(6)).toThrow(ArgumentError);
    },
  );
  test.each(kinds)("the null page holds zeros from the start: %o", (kind) => {
    using storage = new PageStorage(engine, layoutOf(kind), 3);
    for (const values of pageOf(storage, 0)) expect(new Set(values)).toEqual(new Set([0]));
  });
  test.each(kinds)(
    "a page number means the same tokens in every layer, whatever lies beside it: %o",
    (kind) => {
      using storage = new PageStorage(engine, layoutOf(kind), 3);
      fillRandom(storage);
      const before = [0, 1, 2, 3].map((page) => pageOf(storage, page));
      storage.copyRows(1, 3, 2);
      for (const page of [0, 1, 2]) expect(pageOf(storage, page)).toEqual(before[page]!);
      pageOf(storage, 3).forEach((values, at) => {
        const width = values.length / 8;
        values.forEach((value, i) => {
          const row = Math.floor(i / width) % 4;
          expect(value).toBe(before[row < 2 ? 1 : 3]![at]![i]!);
        });
      });
    },
  );
  test.each(floatDTypes)("bytes of a page come back as they were, NaN and all: %s", (dtype) => {
    for (const kind of kinds) {
      using storage = new PageStorage(engine, layoutOf({ ...kind, dtype }), 3);
      const bytes = createRng(7)
        .normalArray(storage.pageBytes)
        .map((x) => x * 1e3);
      const given = Uint8Array.from(bytes, (x) => x & 255);
      const other = storage.readPage(3);
      storage.writePage(2, given);
      expect(storage.readPage(2)).toEqual(given);
      expect(storage.readPage(3)).toEqual(other);
    }
  });
  test.each(kinds)("a page read and written elsewhere has the same rows: %o", (kind) => {
    using storage = new PageStorage(engine, layoutOf(kind), 3);
    fillRandom(storage);
    storage.writePage(1, storage.readPage(2));
    expect(pageOf(storage, 1)).toEqual(pageOf(storage, 2));
  });
  test("what is read is a copy", () => {
    using storage = new PageStorage(engine, layoutOf(), 3);
    fillRandom(storage);
    const [bytes, before] = [storage.readPage(1), pageOf(storage, 1)];
    bytes.fill(0);
    expect(pageOf(storage, 1)).toEqual(before);
  });
  test("pages that do not exist, the null page as a target, and wrong numbers of bytes are refused", () => {
    using storage = new PageStorage(engine, layoutOf(), 3);
    for (const page of [-1, 4, 0.5, NaN]) {
      expect(() => storage.readPage(page)).toThrow(ArgumentError);
      expect(() => storage.writePage(page, new Uint8Array(storage.pageBytes))).toThrow(ArgumentError);
    }
    expect(() => storage.writePage(0, new Uint8Array(storage.pageBytes))).toThrow(ArgumentError);
    for (const extra of [-1, 1])
      expect(() => storage.writePage(1, new Uint8Array(storage.pageBytes + extra))).toThrow(ArgumentError);
  });
});
test.each(engines)("memory of pages that were never used is not committed on %s", (name) => {
  const shape = { layers: [0], numKvHeads: 8, headDim: 128, valueHeadDim: 128, pageSize: 64 };
  Bun.gc(true);
  const before = process.memoryUsage.rss();
  using storage = new PageStorage(getEngine(name), layoutOf(shape), 2047); // 2 tensors of 512 MiB
  expect(storage.byteLength).toBe(2 ** 30);
  expect(process.memoryUsage.rss() - before).toBeLessThan(2 ** 27);
});
test("storage that cannot be had in full leaves no memory behind", () => {
  const good = portable();
  for (let n = 1, failed = true; failed; n++) {
    let left = n;
    const tick = (): void => {
      if (--left === 0) throw new OutOfMemoryError("[test] no memory");
    };
    const engine: Engine = {
      ...good,
      alloc: (bytes) => (tick(), good.alloc(bytes)),
      upload: (values, out) => (tick(), good.upload(values, out)),
    };
    const before = memoryUsage();
    failed = false;
    try {
      new PageStorage(engine, layoutOf(), 3)[Symbol.dispose]();
    } catch {
      failed = true;
    }
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
    if (!failed) expect(n).toBe(9); // four tensors, four null pages
  }
});
describe("pages of 64 GiB that are not there", () => {
  // 2^19 pages of 64 tokens with 4 heads of 64 numbers in float32: 64 KiB a page and tensor, keys and values
  const layout = layoutOf({ layers: [0], numKvHeads: 4, headDim: 64, valueHeadDim: 64, pageSize: 64 });
  const PAGES = 2 ** 19;
  function withoutMemory(): { engine: Engine; copies: [Tensor, Tensor][]; bytes: () => number } {
    const copies: [Tensor, Tensor][] = [];
    let total = 0;
    const engine: Engine = {
      ...portable(),
      alloc: (bytes) => {
        total += bytes;
        return { buffer: undefined, address: 2 ** 40, release: () => {} };
      },
      upload: () => {},
      copy: (x, out) => void copies.push([x.alias(), out.alias()]),
    };
    return { engine, copies, bytes: () => total };
  }
  test.each(["head-major", "token-major"] as const)("rows beyond 2^32 are where they belong: %s", (order) => {
    const { engine, copies, bytes } = withoutMemory();
    using storage = new PageStorage(engine, { ...layout, layout: order }, PAGES - 1);
    expect(bytes()).toBe(2 ** 36);
    expect(storage.byteLength).toBe(2 ** 36);
    storage.copyRows(PAGES - 2, PAGES - 1, 5);
    const size = 64 * 4 * 64;
    expect(copies.map(([x, out]) => [x.offset, out.offset])).toEqual([
      [(PAGES - 2) * size, (PAGES - 1) * size],
      [(PAGES - 2) * size, (PAGES - 1) * size],
    ]);
    expect((PAGES - 2) * size).toBeGreaterThan(2 ** 32);
    expect(copies.flat().map((t) => t.shape.join())).toEqual(new Array(4).fill("4,5,64"));
    for (const t of copies.flat()) t[Symbol.dispose]();
  });
  test("their bytes cannot be read on the host, which is a typed error", () => {
    using storage = new PageStorage(withoutMemory().engine, layout, PAGES - 1);
    expect(() => storage.readPage(5)).toThrow(DeviceError);
  });
});
