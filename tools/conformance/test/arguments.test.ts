import { expect, test } from "bun:test";
import { parseArguments } from "../arguments.ts";

test("a folder alone runs everything on the cpu engine and prints a table", () => {
  expect(parseArguments(["vectors"])).toEqual({
    folder: "vectors",
    engine: "cpu",
    filter: "",
    json: false,
    help: false,
  });
});

test("options may stand before or after the folder", () => {
  const expected = { folder: "v", engine: "portable", filter: "gqa", json: true };
  expect(parseArguments(["v", "--engine", "portable", "--filter", "gqa", "--json"])).toMatchObject(expected);
  expect(parseArguments(["--json", "--filter=gqa", "--engine=portable", "v"])).toMatchObject(expected);
});

test("no folder, an empty one or two are refused with what was given", () => {
  expect(() => parseArguments([])).toThrow("one DIR is needed; got none");
  expect(() => parseArguments([""])).toThrow('one DIR is needed; got ""');
  expect(() => parseArguments(["a", "b"])).toThrow('one DIR is needed; got "a", "b"');
});

test("unknown options and options without a value are refused by name", () => {
  expect(() => parseArguments(["v", "--fast"])).toThrow("--fast");
  expect(() => parseArguments(["v", "--engine"])).toThrow("--engine");
});

test("help needs no folder", () => {
  expect(parseArguments(["--help"]).help).toBe(true);
});
