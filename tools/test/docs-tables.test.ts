import { layerBuilders } from "@heed/attention";
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";

const root = join(import.meta.dir, "../..");
const read = (path: string): Promise<string> => Bun.file(join(root, path)).text();

/** The cells of every table row of a page, headings and rules left out. */
function rowsOf(page: string): string[][] {
  const lines = page.split("\n");
  return lines
    .filter(
      (line, i) =>
        line.startsWith("|") && !line.startsWith("| -") && lines[i + 1]?.startsWith("| -") !== true,
    )
    .map((line) =>
      line
        .slice(1, -1)
        .split(/(?<!\\)\|/)
        .map((cell) => cell.trim()),
    );
}
/** Links of a text to files of the project, by their path from the root. */
function linksOf(page: string, text: string): { readonly words: string; readonly path: string }[] {
  const links = text.matchAll(/\[([^\]]+)\]\((?!https?:)([^)#]+)\)/g);
  return [...links].map(([, words, link]) => ({ words: words!, path: join(page, "..", link!) }));
}
/** Whether a source has a test with this in its title: in one line, in quotes, of which a test.each or a template may have more. */
function hasTitle(source: string, words: string): boolean {
  const isQuoted = (text: string): boolean => /["`]/.test(text);
  return source.split("\n").some((line) => {
    const at = line.indexOf(words);
    return at >= 0 && isQuoted(line.slice(0, at)) && isQuoted(line.slice(at + words.length));
  });
}
/** The last cell of every row links one test that is there. */
async function expectTests(page: string, rows: readonly string[][]): Promise<void> {
  for (const cells of rows) {
    const links = linksOf(page, cells.at(-1)!);
    expect([cells[0], links.length]).toEqual([cells[0], 1]);
    const { words, path } = links[0]!;
    expect([path, words, hasTitle(await read(path), words)]).toEqual([path, words, true]);
  }
}
describe("the page that maps zerfoo's symbols", async () => {
  const page = "docs/from-zerfoo.md";
  const text = await read(page);
  const rows = rowsOf(text);

  test("has a row for each of them, and no cell is empty", () => {
    expect(rows.length).toBeGreaterThan(150);
    expect(rows.filter((cells) => cells.includes("") || ![3, 4].includes(cells.length))).toEqual([]);
    expect(text).not.toContain("not yet");
  });
  test("has the 165 symbols of version 1.59.0, and no name of theirs twice", () => {
    const symbols = rowsOf(text.slice(0, text.indexOf("\n## Where theirs goes wrong")))
      .flatMap((cells) => [...cells[0]!.matchAll(/`([^`]+)`/g)].map(([, name]) => name!))
      .filter((name) => /^[A-Z]\w*(\.[A-Z]\w*)?$/.test(name));
    expect(symbols.length).toBe(new Set(symbols).size);
    expect(symbols.length).toBe(165);
  });
  test("names tests that are there", () => expectTests(page, rows));
});
describe("the page of what the cache guarantees", async () => {
  const page = "docs/guides/kvcache-properties.md";
  const rows = rowsOf(await read(page));

  test("has two cells in each row, and nothing twice in a table", () => {
    expect(rows.length).toBeGreaterThan(80);
    expect(rows.filter((cells) => cells.length !== 2 || cells.includes(""))).toEqual([]);
    expect(new Set(rows.map(([what]) => what)).size).toBe(rows.length);
  });
  test("names tests that are there", () => expectTests(page, rows));
});
describe("pages of layers", () => {
  const pages = [...new Bun.Glob("docs/layers/*.md").scanSync(root)].toSorted();

  test("each layer that builds has one", async () => {
    const titles = (await Promise.all(pages.map(read))).map((text) => text.split("\n", 1)[0]!);
    for (const operation of layerBuilders.keys())
      expect([operation, titles.some((title) => title.includes(operation))]).toEqual([operation, true]);
  });
  test.each(pages)("%s ends with an example that runs", async (page) => {
    const last = (await read(page)).trimEnd().split("\n\n").at(-1)!;
    expect(last).toStartWith("Runnable: ");
    expect(linksOf(page, last).every(({ path }) => path.startsWith("docs/examples/"))).toBe(true);
  });
});
describe("the page on architecture", async () => {
  const rows = rowsOf(await read("docs/architecture.md"));
  /** Paths in a cell, below packages: `a/{b,c}` is two, `.../x` lies beside what the row above names. */
  const pathsOf = (cell: string, above: string): string[] =>
    (cell.match(/(?<![`\w@])(?:[a-z-]+|\.{3})\/[\w{},./-]*\w\}?/g) ?? []).flatMap((path) => {
      const whole = path.replace("...", dirname(above));
      const [, before, names, after] = /^(.*)\{(.*)\}(.*)$/.exec(whole) ?? [];
      return names === undefined ? [whole] : names.split(",").map((name) => `${before}${name}${after}`);
    });

  test("names files and folders that are there", () => {
    const paths: string[] = [];
    for (const [, where] of rows) paths.push(...pathsOf(where!, paths.at(-1) ?? ""));
    for (const [room] of rows) paths.push(...pathsOf(room!, ""));
    expect(paths.length).toBeGreaterThan(20);
    expect(paths.filter((path) => !existsSync(join(root, "packages", path)))).toEqual([]);
  });
});
describe("pages that map others' names to ours", async () => {
  const sources = await Promise.all(
    [...new Bun.Glob("packages/{tensor,attention,kvcache}/src/**/*.ts").scanSync(root)].map(read),
  );
  const words = new Set(sources.join("\n").match(/\w+/g));

  test.each(["docs/from-zerfoo.md", "docs/from-pytorch.md"])(
    "%s names what is in our sources",
    async (page) => {
      for (const cells of rowsOf(await read(page))) {
        const spans = [...cells[1]!.matchAll(/`([^`]+)`/g)].map(([, span]) => span!);
        const names = spans.flatMap((span) => span.replaceAll(/"[^"]*"/g, "").match(/[A-Za-z]\w{3,}/g) ?? []);
        expect([cells[0], names.filter((name) => !words.has(name))]).toEqual([cells[0], []]);
      }
    },
  );
});
