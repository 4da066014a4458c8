import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { discover } from "../discover.ts";
import { normCase, normTensors, writeSet } from "./vector-files.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "heed-conformance-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kinds = () => discover(folder).map(({ kind, name }) => [kind, name]);
const onlyReason = (): string => {
  const [set] = discover(folder);
  return set?.kind === "broken" ? set.reason : `not broken: ${set?.kind}`;
};

test("sets are found at any depth, in order, and told apart by their cases", () => {
  writeSet(folder, "z/any/name", [{ name: "a", params: {}, tensors: {} }], {});
  writeSet(folder, "b", [{ name: "a", model: "m", config: {}, tensors: {} }], {});
  writeSet(folder, "c/norm", [normCase("a"), normCase("b")], normTensors());
  expect(kinds()).toEqual([
    ["models", "b"],
    ["onnx", "c/norm"],
    ["sdpa", "z/any/name"],
  ]);
});

test("a .json file that is no manifest is passed over, with or without sense in it", () => {
  writeFileSync(join(folder, "package.json"), "{}");
  writeFileSync(join(folder, "notes.json"), "not JSON");
  writeFileSync(join(folder, "empty.json"), "[]");
  expect(kinds()).toEqual([]);
});

test("a manifest without tensors beside it is broken, not absent", () => {
  writeFileSync(join(folder, "norm.json"), JSON.stringify([normCase("a")]));
  expect(onlyReason()).toBe("there is no norm.safetensors beside norm.json");
});

test("what stands beside tensors must be a manifest", () => {
  writeSet(folder, "s", { cases: [] }, {});
  expect(onlyReason()).toContain("s.json is not a list of cases");
  writeFileSync(join(folder, "s.json"), "[");
  expect(onlyReason()).toContain("s.json is not JSON");
});

test("cases must have names of their own", () => {
  writeSet(folder, "s", [normCase("a"), normCase("a")], normTensors());
  expect(onlyReason()).toContain("names of their own");
  writeSet(folder, "s", [null], {});
  expect(onlyReason()).toContain("names of their own");
});

test("cases of no known kind and tensors that cannot be read say so", () => {
  writeSet(folder, "s", [{ name: "a" }], {});
  expect(onlyReason()).toContain("neither ONNX operators, models nor sdpa problems");
  writeSet(folder, "s", [normCase("a")], normTensors());
  writeFileSync(join(folder, "s.safetensors"), "cut");
  expect(onlyReason()).toContain("[safetensors] file of 3 bytes");
});

test("a path that is not a folder is refused by name", () => {
  const path = join(folder, "nowhere");
  expect(() => discover(path)).toThrow(`"${path}" is not a folder`);
});
