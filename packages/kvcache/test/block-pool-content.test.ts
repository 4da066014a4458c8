import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { BlockPool, DEFAULT_PRIORITY, InvariantError } from "../src/index.ts";

const list = (pages: Int32Array): number[] => Array.from(pages);
/** A pool whose first pages hold content with labels 1, 2, ... and these priorities, released in order. */
function cachedPool(count: number, priorities: readonly (number | undefined)[]): BlockPool {
  const pool = new BlockPool(count);
  priorities.forEach((priority, i) => pool.setContent(pool.take(), i + 1, { priority }));
  priorities.forEach((_, i) => pool.release(i + 1));
  return pool;
}

describe("content", () => {
  test("keeps a page until free ones run out, then goes by priority and use", () => {
    const pool = cachedPool(6, [50, 10, 90, 10]);
    expect([pool.free, pool.cached, pool.available]).toEqual([2, 4, 6]);
    expect(list(pool.cachedPages())).toEqual([2, 4, 1, 3]);
    expect(list(pool.peek(99))).toEqual([5, 6, 2, 4, 1, 3]);
    expect(Array.from({ length: 6 }, () => pool.take())).toEqual([5, 6, 2, 4, 1, 3]);
  });
  test("is told of when its page is handed out, and gone before that", () => {
    const pool = cachedPool(2, [50, 50]);
    const evicted: number[][] = [];
    pool.onEvict = (page, label) => evicted.push([page, label, pool.content(page), pool.references(page)]);
    pool.take();
    expect(evicted).toEqual([[1, 1, 0, 1]]);
  });
  test("is found again without a search, and used again makes it the youngest", () => {
    const pool = cachedPool(3, [50, 50, 50]);
    pool.retain(1);
    expect(list(pool.cachedPages())).toEqual([2, 3]);
    pool.release(1);
    expect(list(pool.cachedPages())).toEqual([2, 3, 1]);
    expect(pool.content(1)).toBe(1);
  });
  test("of a cached page cleared makes it free, as the youngest; of a live one, when it is released", () => {
    const pool = cachedPool(4, [50, 50]);
    pool.retain(2);
    pool.clearContent(1);
    pool.clearContent(2);
    pool.clearContent(3);
    expect(list(pool.freePages())).toEqual([3, 4, 1]);
    pool.release(2);
    expect(list(pool.freePages())).toEqual([3, 4, 1, 2]);
    pool.check(new Int32Array(5));
  });
  test("is set once, on a page in use", () => {
    const pool = cachedPool(3, [50]);
    expect(() => pool.setContent(1, 7)).toThrow(InvariantError);
    pool.retain(1);
    expect(() => pool.setContent(1, 7)).toThrow(InvariantError);
    expect(() => pool.setContent(pool.take(), 0)).toThrow(InvariantError);
  });
});
describe("a priority that expires", () => {
  test("counts as the default from its time on, in the place of its last use", () => {
    const pool = new BlockPool(4);
    const retentions = [{}, { priority: 90, expires: 100 }, {}, { priority: 10, expires: 50 }];
    retentions.forEach((retention, i) => pool.setContent(pool.take(), i + 1, retention));
    for (const page of [1, 2, 3, 4]) pool.release(page);
    pool.expire(49);
    expect(list(pool.cachedPages())).toEqual([4, 1, 3, 2]);
    pool.expire(50);
    expect(list(pool.cachedPages())).toEqual([1, 3, 4, 2]);
    pool.expire(1e9);
    expect(list(pool.cachedPages())).toEqual([1, 2, 3, 4]);
    pool.check(new Int32Array(5));
  });
  test("does not outlive its content", () => {
    const pool = new BlockPool(1);
    pool.setContent(pool.take(), 1, { priority: 10, expires: 5 });
    pool.release(1);
    pool.setContent(pool.take(), 2, { priority: 90 });
    pool.expire(10);
    expect(pool.priority(1)).toBe(90);
    pool.check(Int32Array.of(0, 1));
  });
});
describe("pins and fences", () => {
  test("keep a page that nobody refers to, with content or without", () => {
    const pool = cachedPool(3, [50]);
    const page = pool.take();
    pool.pin(1);
    pool.fence(page);
    pool.release(page);
    expect([pool.free, pool.cached]).toEqual([1, 0]);
    pool.check(new Int32Array(4), Int32Array.of(0, 1, 0, 0), Int32Array.of(0, 0, 1, 0));
    pool.unpin(1);
    pool.unfence(page);
    expect(list(pool.peek(9))).toEqual([3, 2, 1]);
  });
  test("may be several on a page, and end in any order", () => {
    const pool = cachedPool(1, [50]);
    pool.pin(1);
    pool.pin(1);
    pool.retain(1);
    pool.fence(1);
    for (const end of ["unpin", "release", "unfence"] as const) {
      pool[end](1);
      expect(pool.available).toBe(0);
    }
    pool.unpin(1);
    expect(pool.cached).toBe(1);
  });
  test("cannot be put on a page that nobody holds, nor taken twice", () => {
    const pool = new BlockPool(2);
    for (const method of ["pin", "unpin", "fence", "unfence", "claim"] as const) {
      for (const page of [0, -1, 1.5, NaN, 3]) expect(() => pool[method](page)).toThrow(InvariantError);
      if (method !== "claim") expect(() => pool[method](1)).toThrow(InvariantError);
    }
    pool.take();
    expect(() => pool.claim(1)).toThrow(InvariantError);
    pool.check(Int32Array.of(0, 1, 0));
  });
  test("that nobody accounts for are noticed", () => {
    const pool = cachedPool(2, [50]);
    pool.pin(1);
    expect(() => pool.check(new Int32Array(3))).toThrow("page 1 has 1 pins, but 0 are known");
    expect(() => pool.check(new Int32Array(3), Int32Array.of(0, 1, 0), Int32Array.of(0, 1, 0))).toThrow(
      InvariantError,
    );
  });
});

/** What the pool should be, by sorting: content, priority and last use of each page. */
class Model {
  readonly pages: {
    references: number;
    pins: number;
    fences: number;
    label: number;
    priority: number;
    expires: number;
    use: number;
  }[];
  free: number[];
  uses = 0;
  constructor(count: number) {
    const page = {
      references: 0,
      pins: 0,
      fences: 0,
      label: 0,
      priority: DEFAULT_PRIORITY,
      expires: Infinity,
      use: 0,
    };
    this.pages = Array.from({ length: count + 1 }, () => ({ ...page }));
    this.free = Array.from({ length: count }, (_, i) => i + 1);
  }
  #loose(page: number): boolean {
    const { references, pins, fences } = this.pages[page]!;
    return references + pins + fences === 0;
  }
  cached(): number[] {
    const idle = [...this.pages.keys()]
      .slice(1)
      .filter((page) => this.#loose(page) && this.pages[page]!.label > 0);
    const at = (page: number): number => this.pages[page]!.priority * 1e6 + this.pages[page]!.use;
    return idle.toSorted((a, b) => at(a) - at(b));
  }
  less(page: number, what: "references" | "pins" | "fences"): void {
    if (--this.pages[page]![what] > 0 || !this.#loose(page)) return;
    if (this.pages[page]!.label === 0) this.free.push(page);
    else this.pages[page]!.use = ++this.uses;
  }
  clear(page: number): void {
    const p = this.pages[page]!;
    if (p.label > 0 && this.#loose(page)) this.free.push(page);
    Object.assign(p, { label: 0, priority: DEFAULT_PRIORITY, expires: Infinity });
  }
  expire(now: number): void {
    for (const p of this.pages)
      if (p.expires <= now) Object.assign(p, { priority: DEFAULT_PRIORITY, expires: Infinity });
  }
  counts(what: "references" | "pins" | "fences"): Int32Array {
    return Int32Array.from(this.pages, (p) => p[what]);
  }
}
const KINDS = [
  "take",
  "retain",
  "release",
  "pin",
  "unpin",
  "fence",
  "unfence",
  "publish",
  "clear",
  "expire",
] as const;

/** Does one command to pool and model alike, if it is allowed on some page. */
function apply(
  pool: BlockPool,
  model: Model,
  kind: (typeof KINDS)[number],
  pick: number,
  label: number,
): void {
  const pagesWith = (test: (p: Model["pages"][number]) => boolean): number =>
    [...model.pages.keys()].filter((page) => page > 0 && test(model.pages[page]!)).at(pick % 7) ?? 0;
  const held = pagesWith((p) => p.references > 0);
  const kept = pagesWith((p) => p.references + p.pins + p.label > 0);
  if (kind === "take") {
    const next = [...model.free, ...model.cached()][0];
    if (next === undefined) return void expect(() => pool.take()).toThrow();
    expect(pool.take()).toBe(next);
    if (model.free[0] === next) model.free.shift();
    Object.assign(model.pages[next]!, {
      label: 0,
      priority: DEFAULT_PRIORITY,
      expires: Infinity,
      references: 1,
    });
  } else if ((kind === "retain" || kind === "pin") && kept > 0) {
    pool[kind](kept);
    model.pages[kept]![kind === "pin" ? "pins" : "references"]++;
  } else if (kind === "release" && held > 0) {
    pool.release(held);
    model.less(held, "references");
  } else if (kind === "fence" && held > 0) {
    pool.fence(held);
    model.pages[held]!.fences++;
  } else if (kind === "unpin" || kind === "unfence") {
    const what = kind === "unpin" ? "pins" : "fences";
    const page = pagesWith((p) => p[what] > 0);
    if (page === 0) return;
    pool[kind](page);
    model.less(page, what);
  } else if (kind === "publish") {
    const page = pagesWith((p) => p.references > 0 && p.label === 0);
    if (page === 0) return;
    const retention = {
      priority: pick % 4 === 0 ? 50 : (pick * 37) % 101,
      expires: pick % 3 === 0 ? pick % 50 : Infinity,
    };
    pool.setContent(page, label, retention);
    Object.assign(model.pages[page]!, { label, ...retention });
  } else if (kind === "clear" && kept > 0) {
    pool.clearContent(kept);
    model.clear(kept);
  } else if (kind === "expire") {
    pool.expire(pick % 50);
    model.expire(pick % 50);
  }
}
test("eviction order, counts and states are those of a model that sorts, after any commands", () => {
  const command = fc.record({
    kind: fc.constantFrom(...KINDS, "release", "publish", "take"),
    pick: fc.nat(1000),
  });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.array(command, { maxLength: 80 }), (count, commands) => {
      const pool = new BlockPool(count);
      const model = new Model(count);
      commands.forEach(({ kind, pick }, i) => {
        apply(pool, model, kind, pick, i + 1);
        pool.check(model.counts("references"), model.counts("pins"), model.counts("fences"));
        expect(list(pool.freePages())).toEqual(model.free);
        expect(list(pool.cachedPages())).toEqual(model.cached());
        for (let page = 1; page <= count; page++) expect(pool.content(page)).toBe(model.pages[page]!.label);
      });
    }),
    { numRuns: 300 },
  );
});
