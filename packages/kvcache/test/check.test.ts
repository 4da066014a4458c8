import { describe, expect, test } from "bun:test";
import { InvariantError, type KvCache, type Sequence } from "../src/index.ts";
import { stateOf } from "../src/sequence.ts";
import type { SequenceState } from "../src/state.ts";
import { append, idsFrom, poisonedCache } from "./fixtures.ts";

/** Two sequences of 6 and 3 tokens in pages of 4, and a step of 2 tokens open on the second. */
function busyCache(): { cache: KvCache; a: Sequence; b: Sequence } {
  const cache = poisonedCache();
  const [a, b] = [cache.open(), cache.open()] as const;
  append(cache, [
    [a, idsFrom(0, 6)],
    [b, idsFrom(0, 3)],
  ]);
  cache.reserve([{ sequence: b, tokens: 2 }]);
  return { cache, a, b };
}
const faults: Record<string, (a: SequenceState, b: SequenceState) => void> = {
  "a page in two sequences": (a, b) => void (a.pageIds[0] = b.pageIds[0]!),
  "a page twice in one sequence": (a) => void (a.pageIds[1] = a.pageIds[0]!),
  "a tail page in two sequences, counted as shared": (a, b) => {
    a.cache.pool.release(a.pageIds[1]!);
    a.cache.pool.retain(b.pageIds[0]!);
    a.pageIds[1] = b.pageIds[0]!;
  },
  "the null page in a sequence": (a) => void (a.pageIds[0] = 0),
  "a page that does not exist": (a) => void (a.pageIds[0] = 13),
  "a free page in a sequence": (a) => a.cache.pool.release(a.pageIds[0]!),
  "a page that was taken for nobody": (a) => void a.cache.pool.take(),
  "a reference too many": (a) => a.cache.pool.retain(a.pageIds[0]!),
  "a length beyond its pages": (a) => void (a.length += 4),
  "a page more than the length needs": (a) => void (a.length -= 4),
  "tokens counted that nobody holds": (a) => void a.cache.tokens++,
  "pending tokens without a step": (a) => void (a.pending = 1),
  "pending tokens beyond the pages": (_, b) => void (b.pending += 4),
  "a step that is not open": (_, b) => void b.cache.steps.clear(),
  "a released sequence in the list": (a) => void (a.released = true),
  "fewer ids than tokens": (a) => void (a.tokenIds = a.tokenIds!.slice(0, 5)),
};

describe("check", () => {
  test("passes with sequences and a step open", () => {
    using cache = busyCache().cache;
    cache.check();
  });
  test.each(Object.keys(faults))("throws for %s", (name) => {
    const { cache, a, b } = busyCache();
    faults[name]!(stateOf(a), stateOf(b));
    expect(() => cache.check()).toThrow(InvariantError);
  });
});
