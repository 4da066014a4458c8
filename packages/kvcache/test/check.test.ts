import { describe, expect, test } from "bun:test";
import { InvariantError, type KvCache, type Sequence } from "../src/index.ts";
import { stateOf } from "../src/sequence.ts";
import type { SequenceState } from "../src/state.ts";
import { append, idsFrom, poisonedCache, poisonedGroups } from "./fixtures.ts";

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
  "a page in two sequences": (a, b) => void (a.lists[0]!.ids[0] = b.lists[0]!.ids[0]!),
  "a page twice in one sequence": (a) => void (a.lists[0]!.ids[1] = a.lists[0]!.ids[0]!),
  "a tail page in two sequences, counted as shared": (a, b) => {
    a.cache.groups[0]!.pool.release(a.lists[0]!.ids[1]!);
    a.cache.groups[0]!.pool.retain(b.lists[0]!.ids[0]!);
    a.lists[0]!.ids[1] = b.lists[0]!.ids[0]!;
  },
  "the null page in a sequence": (a) => void (a.lists[0]!.ids[0] = 0),
  "a page that does not exist": (a) => void (a.lists[0]!.ids[0] = 13),
  "a free page in a sequence": (a) => a.cache.groups[0]!.pool.release(a.lists[0]!.ids[0]!),
  "a page that was taken for nobody": (a) => void a.cache.groups[0]!.pool.take(),
  "a reference too many": (a) => a.cache.groups[0]!.pool.retain(a.lists[0]!.ids[0]!),
  "a length beyond its pages": (a) => void (a.length += 4),
  "a page more than the length needs": (a) => void (a.length -= 4),
  "tokens counted that nobody holds": (a) => void a.cache.tokens++,
  "pending tokens without a step": (a) => void (a.pending = 1),
  "pending tokens beyond the pages": (_, b) => void (b.pending += 4),
  "a step that is not open": (_, b) => void b.cache.steps.clear(),
  "a released sequence in the list": (a) => void (a.released = true),
  "fewer ids than tokens": (a) => void (a.tokenIds = a.tokenIds!.slice(0, 5)),
};

/** Two groups, the second with a window of 4 and a sink; 14 tokens, of which 4 .. 7 are dropped there; and a fork that has added. */
function slidCache(): { cache: KvCache; a: SequenceState } {
  const rows = { numKvHeads: 1, headDim: 2, pageSize: 4, maxPages: 12 };
  const window = { window: 4, sinks: 1 };
  const cache = poisonedGroups({
    groups: [
      { ...rows, layers: [0] },
      { ...rows, layers: [1], ...window },
    ],
  });
  const a = cache.open();
  append(cache, [[a, idsFrom(0, 14)]]);
  const [fork] = a.fork();
  cache.reserve([{ sequence: fork!, tokens: 1 }]);
  cache.fence([a]);
  return { cache, a: stateOf(a) };
}
const groupFaults: Record<string, (a: SequenceState) => void> = {
  "a page where the window has dropped it": (a) => void (a.lists[1]!.ids[1] = 2),
  "the null page inside of the window": (a) => void (a.lists[1]!.ids[3] = 0),
  "the null page for a sink": (a) => void (a.lists[1]!.ids[0] = 0),
  "the null page in a group without a window": (a) => void (a.lists[0]!.ids[1] = 0),
  "a window dropped too far": (a) => {
    const list = a.lists[1]!;
    a.cache.groups[1]!.pool.release(list.ids[list.from]!);
    list.ids[list.from++] = 0;
  },
  "a dropped page in a group without a window": (a) => {
    const list = a.lists[0]!;
    a.cache.groups[0]!.pool.release(list.ids[0]!);
    list.ids[list.from++] = 0;
  },
  "a reference too many in the second group": (a) => a.cache.groups[1]!.pool.retain(a.lists[1]!.ids[0]!),
  "a tail that no step holds any more": (a) =>
    void ([...a.cache.steps][0]!.replaced as unknown[]).splice(0, 1),
  "a fence without books": (a) => a.cache.fences.clear(),
  "a fence too many": (a) => a.cache.groups[0]!.pool.fence(a.lists[0]!.ids[0]!),
  "a pin that nobody has": (a) => a.cache.groups[0]!.pool.pin(a.lists[0]!.ids[0]!),
};

describe("check", () => {
  test("passes with windows slid, forks, a copied tail and a fence", () => {
    using cache = slidCache().cache;
    cache.check();
  });
  test.each(Object.keys(groupFaults))("throws for %s", (name) => {
    const { cache, a } = slidCache();
    groupFaults[name]!(a);
    expect(() => cache.check()).toThrow(InvariantError);
  });
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
