/** What `check()` must notice in the books of shared prefixes; see check.test.ts for those of sequences and pages. */
import { describe, expect, test } from "bun:test";
import { InvariantError, type KvCache } from "../src/index.ts";
import type { PrefixIndex } from "../src/prefix-index.ts";
import { stateOf } from "../src/sequence.ts";
import type { SequenceState } from "../src/state.ts";
import { append, booksOf, idsFrom, poisonedCache } from "./fixtures.ts";

/** Two chains of two blocks of 4 in one namespace, which branch behind the first; the first chain's sequence is open and has a token more. */
function published(): { cache: KvCache; index: PrefixIndex; state: SequenceState; last: number } {
  const quotas = { a: 4 };
  const cache = poisonedCache({ layers: 1, pageSize: 4, maxPages: 8, prefixes: { quotas } });
  const sequence = cache.open({ namespace: "a" });
  append(cache, [[sequence, idsFrom(0, 9)]]);
  const other = cache.open({ match: cache.match([...idsFrom(0, 4), 9], { namespace: "a" }) });
  append(cache, [[other, idsFrom(50, 4)]]);
  other.release();
  const state = stateOf(sequence);
  return { cache, index: booksOf(cache).prefixes!, state, last: state.prefix!.node };
}
const faults: Record<string, (index: PrefixIndex, last: number, state: SequenceState) => void> = {
  "a block with another token": ({ nodes }, last) => void nodes.tokens[last * 4]!++,
  "a block with another key": ({ nodes }, last) => void (nodes.key(last)[31]! ^= 1),
  "a block behind another parent": ({ nodes }, last) => void (nodes.parent[last] = nodes.root[last]!),
  "a block that its parent does not list": ({ nodes }, last) =>
    void (nodes.firstChild[nodes.parent[last]!] = 0),
  "a block at another depth": ({ nodes }, last) => void nodes.depth[last]!++,
  "a block in no tree": ({ nodes }, last) => void (nodes.root[last] = last),
  "a block that lacks its page": ({ nodes }, last) => void (nodes.pages[last] = 0),
  "a block that lists another's page": ({ nodes }, last) =>
    void (nodes.pages[last] = nodes.pages[nodes.parent[last]!]!),
  "a block whose page has lost its label": ({ groups, nodes }, last) =>
    groups[0]!.pool.clearContent(nodes.pages[last]!),
  "a page with content that no block lists": ({ groups }, _, { lists }) =>
    groups[0]!.pool.setContent(lists[0]!.ids[2]!, 9),
  "a block that its namespace does not count": ({ namespaces }, last) => namespaces.remove("a", last),
  "a namespace that counts a block too many": ({ namespaces }) => namespaces.add("a", 63, {}),
  "a block of a lower priority than its namespace knows": (index) => {
    const blocks = index.published();
    for (const block of blocks) index.namespaces.remove("a", block);
    for (const block of blocks) index.namespaces.add("a", block, { priority: 60 });
  },
  "a tree of an epoch that has ended": ({ roots }) => roots.nextEpoch(undefined),
  "a sequence whose last block has other tokens": (_, __, state) => void state.tokenIds![0]!++,
  "a sequence that stands before its last block": (_, __, state) => void state.prefix!.blocks--,
  "a match without books": ({ open, groups, nodes }, last) => {
    groups[0]!.pool.pin(nodes.pages[last]!);
    open.clear();
  },
};

describe("check of a cache that keeps prefixes", () => {
  test("passes with branches, and with a match open", () => {
    using cache = published().cache;
    using match = cache.match(idsFrom(0, 9), { namespace: "a" });
    expect(match.length).toBe(8);
    cache.check();
  });
  test.each(Object.keys(faults))("throws for %s", (name) => {
    const { cache, index, state, last } = published();
    cache.check();
    faults[name]!(index, last, state);
    expect(() => cache.check()).toThrow(InvariantError);
  });
  test("throws for a namespace with more blocks than its quota", () => {
    const { cache, index } = published();
    index.namespaces.quota = () => 2;
    expect(() => cache.check()).toThrow(InvariantError);
  });
});
