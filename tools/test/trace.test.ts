import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArguments } from "../trace/arguments.ts";
import { poolPicture } from "../trace/picture.ts";

const main = join(import.meta.dir, "../trace/main.ts");
let folder = "";
let file = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "heed-trace-"));
  file = join(folder, "trace.jsonl");
  await Bun.write(file, `${lines().join("\n")}\n`);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** A trace of a cache with published prefixes and a window. */
function lines(): string[] {
  const all: string[] = [];
  const sizes = { numKvHeads: 1, headDim: 1, pageSize: 4, maxPages: 20 };
  using cache = new KvCache({
    engine: "portable",
    groups: [
      { ...sizes, layers: [0] },
      { ...sizes, layers: [1], window: 6 },
    ],
    prefixes: true,
  });
  using _ = cache.record((line) => all.push(line));
  const prompt = Array.from({ length: 17 }, (_, i) => i);
  for (let round = 0; round < 4; round++) {
    using sequence = cache.open({ match: cache.match(prompt) });
    using step = cache.reserve([{ sequence, tokens: prompt.length - sequence.length }]);
    step.markWritten();
    step.commit(prompt.slice(sequence.length));
  }
  return all;
}
async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = Bun.spawn([process.execPath, main, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

test("a trace replays to the same pages, with a table and a picture", async () => {
  const { code, out, err } = await run(file);
  expect([code, err]).toEqual([0, ""]);
  expect(out).toContain("commands replayed: the same pages");
  expect(out).toMatch(/group 0 +20 +5 +4 +15 /);
  const svg = await Bun.file(`${file}.svg`).text();
  for (const text of [
    "Group 0: pages of 4 tokens, all tokens kept",
    "window of 6, 0 sinks",
    "prefers-color-scheme: dark",
    "pages, of 20",
    'class="cached"',
  ])
    expect(svg).toContain(text);
  expect(svg).not.toContain("NaN");
});
test("a trace that does not replay ends with 1 and names the line", async () => {
  const other = join(folder, "other.jsonl");
  await Bun.write(other, lines().with(3, lines()[3]!.replace('"pages":[[[1,', '"pages":[[[9,')).join("\n"));
  const { code, out } = await run(other, "--svg", join(folder, "other.svg"));
  expect([code, out.includes("line 4, reserve: pages")]).toEqual([1, true]);
  expect(await Bun.file(join(folder, "other.svg")).exists()).toBe(true);
});
test("what is no trace, no file or no option ends with 2 and words", async () => {
  const bad = join(folder, "bad.jsonl");
  await Bun.write(bad, '{"trace":"heed-kvcache"}\n');
  const results = await Promise.all([run(bad), run(join(folder, "none")), run()]);
  for (const { code, err } of results) {
    expect([code, err.length > 10, err.includes("    at ")]).toEqual([2, true, false]);
  }
  for (const args of [[], ["--what"], ["a", "b"]]) expect(() => parseArguments(args)).toThrow(TypeError);
  expect(parseArguments(["a"])).toEqual({ file: "a", svg: "a.svg", help: false });
});
test("a picture of nothing is a picture", () => {
  const group = { pageSize: 4, window: null, sinks: 0, maxPages: 3 };
  const header = {
    trace: "heed-kvcache",
    version: 1,
    groups: [group],
    draftMargin: 0,
    prefixes: null,
  } as const;
  const svg = poolPicture(header, [], "a < b & c");
  expect(svg).toContain("a &lt; b &amp; c");
  expect(svg).not.toContain("NaN");
});
