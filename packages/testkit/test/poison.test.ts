import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  decodeBfloat16,
  gatherPages,
  pageTable,
  poison,
  poisonPages,
  poisonedBlockTable,
} from "../src/index.ts";

describe("poison", () => {
  test("floats become NaN", () => {
    for (const array of [new Float64Array(3), new Float32Array(3), new Float16Array(3)])
      expect([...poison(array)]).toEqual([NaN, NaN, NaN]);
  });

  test("the bits of 16-bit floats become NaN, other 16-bit integers huge", () => {
    const bfloat16 = poison(new Uint16Array(2), { dtype: "bfloat16" });
    expect(decodeBfloat16(bfloat16[0]!)).toBeNaN();
    const float16 = poison(new Uint16Array(2), { dtype: "float16" });
    expect(new Float16Array(float16.buffer)[1]).toBeNaN();
    expect([...poison(new Uint16Array(1))]).toEqual([0xffff]);
  });

  test("integers become the largest of their type", () => {
    expect(poison(new Int32Array(1))[0]).toBe(2 ** 31 - 1);
    expect(poison(new Uint8Array(1))[0]).toBe(255);
    expect(poison(new BigInt64Array(1))[0]).toBe(2n ** 63n - 1n);
  });

  test("a range leaves the rest alone", () => {
    expect([...poison(new Float64Array(4), { start: 1, end: 3 })]).toEqual([0, NaN, NaN, 0]);
  });
});

describe("poisonPages", () => {
  test("hits every slot that no sequence holds and none that one does", () => {
    fc.assert(
      fc.property(pageTable(), (table) => {
        const [Hkv, width] = [2, 3];
        const pages = new Float32Array(table.numPages * Hkv * table.pageSize * width);
        const poisoned = poisonPages(pages, table, { numPages: table.numPages, Hkv, width });
        const held = table.lengths.reduce((a, n) => a + n, 0);
        expect(poisoned).toBe(table.numPages * table.pageSize - held);
        expect(pages.filter(Number.isNaN).length).toBe(poisoned * Hkv * width);
        for (let n = 0; n < table.lengths.length; n++)
          expect(gatherPages(pages, table, n, { Hkv, width }).some(Number.isNaN)).toBe(false);
      }),
    );
  });

  test("keeps a slot that one of two sharing sequences holds", () => {
    const table = {
      pageSize: 2,
      queryIndptr: [0, 1, 2],
      indptr: [0, 1, 2],
      indices: [1, 1],
      lengths: [1, 2],
    };
    const pages = new Float64Array(4);
    expect(poisonPages(pages, table, { numPages: 2, Hkv: 1, width: 1 })).toBe(2);
    expect([...pages]).toEqual([NaN, NaN, 0, 0]);
  });
});

test("unused entries of a rectangular page table are huge", () => {
  const table = {
    pageSize: 2,
    queryIndptr: [0, 1, 2],
    indptr: [0, 2, 3],
    indices: [4, 0, 2],
    lengths: [3, 1],
  };
  const huge = 2 ** 31 - 1;
  expect(poisonedBlockTable(table)).toEqual({ data: Int32Array.of(4, 0, huge, 2, huge, huge), maxPages: 3 });
});
