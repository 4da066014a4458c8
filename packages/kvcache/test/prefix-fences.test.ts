/** Rows that fenced work reads, on pages that prefixes share. */
import { expect, test } from "bun:test";
import { append, contents, expected, idsFrom, poisonedCache } from "./fixtures.ts";

test("a partial match whose block is published no more does not write over rows that fenced work reads", () => {
  using cache = poisonedCache({ maxPages: 6, pageSize: 4, prefixes: true });
  const reader = cache.open();
  append(cache, [[reader, idsFrom(0, 4)]]);
  using fence = cache.fence([reader]);
  using match = cache.match([0, 1, 99, 100], { partial: true });
  expect(match.length).toBe(2);
  const sequence = cache.open({ match });
  reader.release();
  cache.invalidate();
  append(cache, [[sequence, [99, 100]]]);
  expect(fence.isOpen).toBe(true);
  expect(Array.from(sequence.pages)).toEqual([2]); // the work finds page 1 as it was
  expect(contents(cache, sequence, 0)).toEqual(expected(cache, [0, 1, 99, 100], 0));
  cache.check();
});
