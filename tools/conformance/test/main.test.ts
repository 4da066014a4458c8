import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { normCase, normTensors, writeSet } from "./vector-files.ts";

const tool = join(import.meta.dir, "..", "main.ts");

function conformance(...args: readonly string[]): { code: number; out: string; err: string } {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, tool, ...args]);
  return { code: exitCode, out: stdout.toString(), err: stderr.toString() };
}

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "heed-conformance-"));
  writeSet(join(folder, "right"), "norm", [normCase("one"), normCase("two")], normTensors());
  writeSet(join(folder, "wrong"), "norm", [normCase("one")], normTensors(1e-4));
  mkdirSync(join(folder, "empty"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const on = (name: string, ...more: readonly string[]) =>
  conformance(join(folder, name), "--engine", "portable", ...more);

describe("a wrong command line exits with 2, its words and the usage", () => {
  const refused = (args: readonly string[], words: string) => {
    const { code, out, err } = conformance(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toStartWith(words);
    expect(err).toContain("bun run conformance DIR");
  };
  test("no folder", () => refused([], "one DIR is needed; got none"));
  test("an unknown option", () => refused(["x", "--fast"], "Unknown option '--fast'"));
  test("a folder that is not there", () =>
    refused([join(folder, "nowhere")], `"${join(folder, "nowhere")}" is not a folder`));
  test("a folder without sets", () => refused([join(folder, "empty")], "no .json manifest"));
  test("an engine that is not there", () =>
    refused([join(folder, "right"), "--engine", "abacus"], 'there is no engine "abacus"; there are '));
  test("a filter that nothing matches", () =>
    refused([join(folder, "right"), "--engine", "portable", "--filter", "three"], 'no case has "three"'));
});

test("all passed: exit code 0, a table, and the summary last", () => {
  const { code, out, err } = on("right");
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(out).toStartWith("engine portable: ");
  expect(out).toEndWith("\n2 passed, 0 failed, 0 skipped\n");
});

test("a planted wrong expected value: exit code 1, and it is named", () => {
  const { code, out } = on("wrong");
  expect(code).toBe(1);
  expect(out).toContain("norm/one: Y: worst at [0, 0]: got 0.8485");
  expect(out).toEndWith("\n0 passed, 1 failed, 0 skipped\n");
});

test("a folder runs all sets below it, and one failure fails the run", () => {
  const { code, out } = conformance(folder, "--engine", "portable");
  expect(code).toBe(1);
  expect(out).toMatch(/^right\/norm +2 +0 +0 /m);
  expect(out).toMatch(/^wrong\/norm +0 +1 +0 /m);
  expect(out).toEndWith("\n2 passed, 1 failed, 0 skipped\n");
});

test("a filter runs the cases it matches only", () => {
  expect(conformance(folder, "--engine", "portable", "--filter", "right/norm/two").out).toEndWith(
    "\n1 passed, 0 failed, 0 skipped\n",
  );
});

test("JSON goes to stdout alone, with the same exit code", () => {
  const { code, out, err } = on("wrong", "--json");
  expect(code).toBe(1);
  expect(JSON.parse(out)).toMatchObject({ engine: { name: "portable" }, failed: 1, sets: [{ set: "norm" }] });
  expect(err).toBe("0 passed, 1 failed, 0 skipped\n");
});

test("help is the usage, on stdout", () => {
  const { code, out } = conformance("--help");
  expect(code).toBe(0);
  expect(out).toStartWith("bun run conformance DIR");
});
