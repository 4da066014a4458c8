/** Properties of shared prefixes that no other test states. */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { append, contents, expected, idsFrom, poisonedCache } from "./fixtures.ts";

const BLOCK = 4;

test("changing token i bounds the match: to i in part, to the block before it in full blocks", () => {
  fc.assert(
    fc.property(
      fc.array(fc.nat(3), { minLength: BLOCK, maxLength: 5 * BLOCK }),
      fc.nat(),
      fc.integer({ min: 1, max: 9 }),
      fc.constantFrom(0, 4, 32),
      (ids, place, by, hashBits) => {
        using cache = poisonedCache({ layers: 1, pageSize: BLOCK, maxPages: 8, prefixes: { hashBits } });
        using sequence = cache.open();
        append(cache, [[sequence, ids]]);
        const published = ids.length - (ids.length % BLOCK);
        const i = place % published;
        const changed = [...ids.slice(0, published), 1];
        changed[i]! += by;
        using whole = cache.match(changed);
        using partial = cache.match(changed, { partial: true });
        expect([whole.length, partial.length]).toEqual([i - (i % BLOCK), i]);
      },
    ),
    { numRuns: 100 },
  );
});
test("a sequence that goes on from a block that has gone does not go on from the block that has its number", () => {
  using cache = poisonedCache({ layers: 1, pageSize: BLOCK, maxPages: 3, prefixes: true });
  const [first, second, filler] = [cache.open(), cache.open(), cache.open()] as const;
  const ids = idsFrom(0, BLOCK);
  append(cache, [
    [first, ids],
    [second, ids], // its page stays its own: the block is published already
    [filler, [90]],
  ]);
  first.release();
  const other = cache.open();
  append(cache, [[other, idsFrom(50, BLOCK)]]); // on the first one's page, and under its block's number
  filler.release();
  append(cache, [[second, idsFrom(BLOCK, BLOCK)]]);
  const lengths = [[...idsFrom(50, BLOCK), ...idsFrom(BLOCK, BLOCK), 1], idsFrom(0, 2 * BLOCK + 1)].map(
    (list) => {
      using match = cache.match(list);
      return match.length;
    },
  );
  expect(lengths).toEqual([BLOCK, 2 * BLOCK]);
  expect(contents(cache, second, 0)).toEqual(expected(cache, idsFrom(0, 2 * BLOCK), 0));
  cache.check();
});
