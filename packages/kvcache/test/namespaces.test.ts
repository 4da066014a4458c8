/** Which block of a namespace makes room for another. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { DEFAULT_PRIORITY } from "../src/block-pool.ts";
import { Namespaces } from "../src/namespaces.ts";

interface Block {
  readonly node: number;
  priority: number;
  readonly expires: number;
  stays: boolean;
}
const PARENT = new Int32Array(100);
/** Depth 1 for every block, behind the root 0, so that touching one touches it alone. */
const DEPTH = new Int32Array(100).fill(1).with(0, 0);
const commands = fc.array(
  fc.record({
    op: fc.constantFrom("add", "add", "add", "remove", "touch", "stay", "go", "expire"),
    which: fc.nat({ max: 19 }),
    priority: fc.constantFrom(0, 10, 49, 50, 51, 80, 100, undefined),
    expires: fc.constantFrom(undefined, 1, 2, 3),
    most: fc.constantFrom(0, 10, 50, 79, 80, 100),
  }),
  { maxLength: 60 },
);

describe("the block that makes room", () => {
  test("has the lowest priority of those that may go, up to the new one's, and is of those unused the longest", () => {
    fc.assert(
      fc.property(commands, (list) => {
        const namespaces = new Namespaces({ quota: 100 });
        let blocks: Block[] = []; // in order of use
        let [next, now] = [1, 0];
        for (const { op, which, priority, expires, most } of list) {
          const one = blocks[which % Math.max(1, blocks.length)];
          if (op === "add") {
            namespaces.add("n", next, { priority, expires });
            const kept = { priority: priority ?? DEFAULT_PRIORITY, expires: expires ?? Infinity };
            blocks.push({ node: next++, stays: false, ...kept });
          } else if (op === "expire") now++;
          else if (one === undefined) continue;
          else if (op === "remove") {
            namespaces.remove("n", one.node);
            blocks = blocks.filter((b) => b !== one);
          } else if (op === "touch") {
            namespaces.touch("n", one.node, PARENT, DEPTH);
            blocks = [...blocks.filter((b) => b !== one), one];
          } else one.stays = op === "stay";
          for (const b of blocks) if (b.expires <= now) b.priority = DEFAULT_PRIORITY;
          const of = new Map(blocks.map((b) => [b.node, b]));
          const found = namespaces.first(
            "n",
            most,
            (node) => !of.get(node)!.stays,
            (node) => of.get(node)!.priority,
          );
          const expected = blocks
            .filter((b) => !b.stays && b.priority <= most)
            .toSorted((a, b) => a.priority - b.priority)[0];
          expect(found).toBe(expected?.node ?? 0);
        }
      }),
      { numRuns: 500 },
    );
  });
  test("is found at once where no priorities are given, however many there are", () => {
    const namespaces = new Namespaces({ quota: 5 });
    for (let node = 1; node <= 500; node++) namespaces.add("n", node, {});
    let asked = 0;
    const priorityOf = (): number => (asked++, DEFAULT_PRIORITY);
    expect(namespaces.first("n", DEFAULT_PRIORITY, (node) => node > 3, priorityOf)).toBe(4);
    expect(asked).toBe(4);
    expect(namespaces.first("m", DEFAULT_PRIORITY, () => true, priorityOf)).toBe(0);
  });
});
