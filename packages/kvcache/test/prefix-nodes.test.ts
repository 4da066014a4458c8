import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { InvariantError } from "../src/index.ts";
import { PrefixNodes } from "../src/prefix-nodes.ts";

const hex = (key: Uint8Array): string => Buffer.from(key).toString("hex");
/** SHA-256 of a parent's key and tokens, by another library. */
const sha = (parent: Uint8Array, tokens: readonly number[]): string =>
  new Bun.CryptoHasher("sha256")
    .update(parent)
    .update(new Uint8Array(Int32Array.from(tokens).buffer))
    .digest("hex");

describe("PrefixNodes", () => {
  test("keys follow from the parent's key and the tokens", () => {
    const nodes = new PrefixNodes(3, [1]);
    const root = nodes.addRoot(new Uint8Array(32).fill(7));
    const a = nodes.add(root, [9, 1, 2, 3], 1);
    const b = nodes.add(a, [1, 2, 3], 0);
    expect(hex(nodes.key(a))).toBe(sha(nodes.key(root), [1, 2, 3]));
    expect(hex(nodes.key(b))).toBe(sha(nodes.key(a), [1, 2, 3]));
    expect([nodes.depth[a], nodes.depth[b], nodes.count]).toEqual([1, 2, 2]);
  });
  test("a number that is given again has another serial", () => {
    const nodes = new PrefixNodes(1, [1]);
    const root = nodes.addRoot(new Uint8Array(32));
    const a = nodes.add(root, [1], 0);
    const serial = nodes.serial[a];
    nodes.remove(a);
    expect(nodes.add(root, [1], 0)).toBe(a);
    expect(nodes.serial[a]).not.toBe(serial!);
  });
  test("a node with children cannot go", () => {
    const nodes = new PrefixNodes(1, [1]);
    const root = nodes.addRoot(new Uint8Array(32));
    const a = nodes.add(root, [1], 0);
    expect(() => nodes.remove(root)).toThrow(InvariantError);
    nodes.remove(a);
    nodes.remove(root);
    expect(nodes.all()).toEqual([]);
  });
  test.each([0, 1, 4, 32])(
    "with hashes of %d bits finds what was added and not removed, and nothing else",
    (bits) => {
      const command = fc.record({ remove: fc.boolean(), parent: fc.nat(), token: fc.nat(5) });
      fc.assert(
        fc.property(
          fc.array(command, { maxLength: 300, size: "max" }),
          fc.integer({ min: 1, max: 5 }),
          (list, blockTokens) => {
            const nodes = new PrefixNodes(blockTokens, [1], bits);
            const root = nodes.addRoot(new Uint8Array(32));
            const model = new Map<string, number>(); // "parent:token" -> node
            const block = (t: number): number[] =>
              Array.from({ length: blockTokens }, (_, i) => (i === blockTokens - 1 ? t : 0));
            for (const { remove, parent, token } of list) {
              const known = [root, ...model.values()];
              const at = known[parent % known.length]!;
              if (remove && at !== root && nodes.firstChild[at] === 0) {
                nodes.remove(at);
                for (const [name, node] of model) if (node === at) model.delete(name);
              } else if (!remove && !model.has(`${at}:${token}`))
                model.set(`${at}:${token}`, nodes.add(at, block(token), 0));
            }
            expect(nodes.count).toBe(model.size);
            for (const at of [root, ...model.values()]) {
              for (let t = 0; t < 6; t++)
                expect(nodes.find(at, block(t), 0)).toBe(model.get(`${at}:${t}`) ?? 0);
            }
            for (const node of model.values()) nodes.check(node);
          },
        ),
        { numRuns: 40 },
      );
    },
  );
});
