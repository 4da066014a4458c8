import { OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { BlockPool, InvariantError, NULL_PAGE } from "../src/index.ts";

const take = (pool: BlockPool, count: number): number[] => Array.from({ length: count }, () => pool.take());

describe("BlockPool", () => {
  test("hands out each page once, in ascending order, and never the null page", () => {
    const pool = new BlockPool(5);
    expect(take(pool, 5)).toEqual([1, 2, 3, 4, 5]);
    expect(pool.free).toBe(0);
    expect(pool.references(NULL_PAGE)).toBe(0);
  });
  test("an empty pool is out of memory and stays as it is", () => {
    const pool = new BlockPool(1);
    pool.take();
    expect(() => pool.take()).toThrow(OutOfMemoryError);
    pool.check(Int32Array.of(0, 1));
    pool.release(1);
    expect(pool.take()).toBe(1);
  });
  test("the page that has been free the longest is the next", () => {
    const pool = new BlockPool(4);
    take(pool, 3);
    for (const page of [2, 1, 3]) pool.release(page);
    expect(Array.from(pool.freePages())).toEqual([4, 2, 1, 3]);
    expect(take(pool, 4)).toEqual([4, 2, 1, 3]);
  });
  test("restoring in reverse undoes a take", () => {
    const pool = new BlockPool(6);
    for (const page of take(pool, 4).slice(0, 2)) pool.release(page);
    const before = Array.from(pool.freePages());
    for (const page of take(pool, 3).reverse()) pool.restore(page);
    expect(Array.from(pool.freePages())).toEqual(before);
  });
  test("a page with two references is freed by the second release", () => {
    const pool = new BlockPool(2);
    const page = pool.take();
    pool.retain(page);
    pool.release(page);
    expect(pool.references(page)).toBe(1);
    expect(pool.free).toBe(1);
    pool.release(page);
    expect(pool.free).toBe(2);
  });
  test("a shared page cannot be restored", () => {
    const pool = new BlockPool(2);
    pool.retain(pool.take());
    expect(() => pool.restore(1)).toThrow(InvariantError);
    pool.check(Int32Array.of(0, 2, 0));
  });
  test.each([NULL_PAGE, -1, 4, 1.5, NaN, 2 ** 32 + 1, 2])(
    "page %p, which nobody holds, cannot be released, retained or restored",
    (page) => {
      const pool = new BlockPool(3);
      pool.take();
      for (const method of ["release", "retain", "restore"] as const)
        expect(() => pool[method](page)).toThrow(InvariantError);
      pool.check(Int32Array.of(0, 1, 0, 0));
    },
  );
  test("check notices references that nobody accounts for", () => {
    const pool = new BlockPool(3);
    pool.take();
    expect(() => pool.check(Int32Array.of(0, 0, 0, 0))).toThrow("page 1 has 1 references, but 0 are known");
    expect(() => pool.check(Int32Array.of(0, 2, 0, 0))).toThrow(InvariantError);
    expect(() => pool.check(Int32Array.of(0, 1, 1, 0))).toThrow(InvariantError);
  });
  test("reset makes a pool like new", () => {
    const pool = new BlockPool(4);
    take(pool, 3);
    pool.release(2);
    pool.reset();
    pool.check(new Int32Array(5));
    expect(take(pool, 4)).toEqual([1, 2, 3, 4]);
  });
  test("any trace of takes, releases, retains and restores keeps the books", () => {
    const command = fc.record({
      kind: fc.constantFrom("take", "release", "retain", "restore"),
      pick: fc.nat(),
    });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.array(command, { maxLength: 60 }), (count, commands) => {
        const pool = new BlockPool(count);
        const references = new Int32Array(count + 1);
        const free = Array.from({ length: count }, (_, i) => i + 1);
        for (const { kind, pick } of commands) {
          const held = Array.from(references.keys()).filter((page) => references[page]! > 0);
          const page = held[pick % held.length];
          if (kind === "take") {
            if (free.length === 0) continue;
            const got = pool.take();
            expect(got).toBe(free.shift()!);
            references[got] = 1;
          } else if (page === undefined) continue;
          else if (kind === "retain") {
            pool.retain(page);
            references[page]!++;
          } else if (kind === "release") {
            pool.release(page);
            if (--references[page]! === 0) free.push(page);
          } else if (references[page] === 1) {
            pool.restore(page);
            references[page] = 0;
            free.unshift(page);
          }
          pool.check(references);
          expect(Array.from(pool.freePages())).toEqual(free);
        }
      }),
    );
  });
});
