import { ArgumentError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type KvCache, type PrefixEvent } from "../src/index.ts";
import { EventLog } from "../src/events.ts";
import { append, idsFrom, poisonedCache } from "./fixtures.ts";

const cacheOf = (maxPages: number, events?: number): KvCache =>
  poisonedCache({ layers: 1, maxPages, pageSize: 2, prefixes: { events } });
const compute = (cache: KvCache, ids: readonly number[]): void => {
  using sequence = cache.open();
  append(cache, [[sequence, ids]]);
};

describe("events", () => {
  test("tell of each block with its tokens and key, behind the one before it", () => {
    using cache = cacheOf(8);
    compute(cache, [5, 6, 7, 8, 9]);
    const { events, next, lost } = cache.events();
    expect([events.length, next, lost]).toEqual([2, 2, 0]);
    const [first, second] = events as Extract<PrefixEvent, { kind: "stored" }>[];
    expect(first).toMatchObject({
      kind: "stored",
      number: 0,
      tokens: [5, 6],
      namespace: "",
      adapter: undefined,
    });
    expect(second).toMatchObject({ kind: "stored", number: 1, tokens: [7, 8], parent: first!.key });
    expect(first!.key).toMatch(/^[0-9a-f]{64}$/);
    expect(cache.prefixes()[1]).toEqual({
      key: second!.key,
      parent: first!.key,
      tokens: [7, 8],
      namespace: "",
      adapter: undefined,
    });
  });
  test("tell of blocks that went with another, the last ones first", () => {
    using cache = cacheOf(8);
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 6)]]);
    const keys = cache.prefixes().map(({ key }) => key);
    sequence.truncate(1);
    expect(cache.events(3).events).toEqual([{ kind: "removed", number: 3, keys: keys.reverse() }]);
  });
  test("tell of a single block that was evicted", () => {
    using cache = cacheOf(2);
    compute(cache, [1, 2]);
    const { key } = cache.prefixes()[0]!;
    compute(cache, [3, 4, 5]);
    const [stored, removed, ...rest] = cache.events().events;
    expect(removed).toEqual({ kind: "removed", number: 1, keys: [key] });
    expect([stored!.kind, rest.map(({ kind }) => kind)]).toEqual(["stored", ["stored"]]);
  });
  test("tell of a reset", () => {
    using cache = cacheOf(8);
    compute(cache, [1, 2]);
    cache.reset();
    expect(cache.events(1).events).toEqual([{ kind: "cleared", number: 1 }]);
  });
  test("say how many of them are lost when the log has gone on", () => {
    using cache = cacheOf(20, 3);
    for (let i = 0; i < 5; i++) compute(cache, [i, i]);
    expect(cache.events()).toMatchObject({
      lost: 2,
      next: 5,
      events: [{ number: 2 }, { number: 3 }, { number: 4 }],
    });
    expect(cache.events(4)).toMatchObject({ lost: 0, events: [{ number: 4 }] });
    expect(cache.events(5)).toEqual({ events: [], next: 5, lost: 0 });
    expect(cache.events(9)).toEqual({ events: [], next: 5, lost: 0 });
  });
  test("may be kept at no number at all", () => {
    using cache = cacheOf(20, 0);
    compute(cache, [1, 1]);
    expect(cache.events()).toEqual({ events: [], next: 1, lost: 1 });
  });
  test.each([-1, 0.5, NaN])("since %p is refused", (since) => {
    using cache = cacheOf(2);
    expect(() => cache.events(since)).toThrow(ArgumentError);
    expect(() => cacheOf(2, since)).toThrow(ArgumentError);
  });
  test("a log gives every event once to one who asks often enough, and counts what others missed", () => {
    fc.assert(
      fc.property(fc.nat(5), fc.array(fc.nat(6), { maxLength: 20 }), (capacity, bursts) => {
        const log = new EventLog(capacity);
        let [next, seen, lost] = [0, 0, 0];
        for (const burst of bursts) {
          for (let i = 0; i < burst; i++) log.add({ kind: "cleared" });
          const batch = log.since(next);
          expect(batch.events.map(({ number }) => number)).toEqual(
            idsFrom(batch.next - batch.events.length, batch.events.length),
          );
          expect(batch.events.length).toBe(Math.min(capacity, burst));
          [next, seen, lost] = [batch.next, seen + batch.events.length, lost + batch.lost];
          expect(seen + lost).toBe(next);
        }
      }),
    );
  });
});
