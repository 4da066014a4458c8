import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { allMutants } from "../mutants/all.ts";
import { mutate } from "../mutants/mutant.ts";
import { root } from "../mutants/workspace.ts";

describe("the table of bugs that are put into the sources", () => {
  test("has each bug once, and each bug changes its source", async () => {
    expect(new Set(allMutants.map(({ bug }) => bug)).size).toBe(allMutants.length);
    for (const mutant of allMutants) {
      const source = await Bun.file(join(root, mutant.file)).text();
      expect([mutant.bug, mutate(source, mutant) === source]).toEqual([mutant.bug, false]);
    }
  });
  test("names tests that are there", () => {
    for (const { bug, tests } of allMutants)
      for (const name of tests)
        expect([bug, existsSync(join(root, `packages/kvcache/test/${name}.test.ts`))]).toEqual([bug, true]);
  });
});
describe("mutate", () => {
  const mutant = {
    bug: "b",
    origin: "likely",
    file: "f",
    text: "a + b",
    becomes: "a $& b",
    tests: [],
  } as const;

  test("changes the text and nothing else, whatever stands in it", () => {
    expect(mutate("x = a + b;", mutant)).toBe("x = a $& b;");
  });
  test.each(["", "a+b", "a + b; a + b"])("refuses %j, in which the text does not stand once", (source) => {
    expect(() => mutate(source, mutant)).toThrow("times");
  });
});
