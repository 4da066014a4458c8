/**
 * The register columns of the tables in docs/kernels, from what the assembler said of each kernel when the library was built.
 * `bun tools/cuda/registers.ts` writes them into the pages; tools/test/register-tables.test.ts says when they differ.
 */
import { join } from "node:path";
import type { Manifest } from "../../packages/engine-cuda/native/manifest.ts";
import { WITHOUT_RULES } from "../../packages/engine-cuda/src/fused/attention/schedule.ts";

const root = join(import.meta.dir, "../..");
/** Compute capabilities, and what the manifest calls them. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  "8.0": "sm_80",
  "9.0": "sm_90a",
  "10.0": "sm_100",
  "12.0": "sm_120",
};
const ALL = Object.keys(ARCHITECTURES);
const TYPES = ["f16", "bf16"];

/** A column of registers: its heading, the capabilities that a cell tells, and the kernels whose largest it is, `*` for both types. */
interface Column {
  readonly heading: string;
  readonly on: readonly string[];
  readonly kernels: (row: readonly string[]) => readonly string[];
}
/** Head sizes of the keys in a cell such as "96, 128" or "192, values 128". */
const sizesOf = (cell: string): string[] => /^\d+(?:, \d+)*/.exec(cell)?.[0].split(", ") ?? [];
/** "by keys, `_pairs`", "by rows": the kernel of the backward pass, and what its name ends in. */
const backward = ([size, kernel]: readonly string[], ending: string): string[] =>
  sizesOf(size!).map(
    (n) => `attention_backward_${kernel!.includes("keys") ? "keys" : "rows"}_*_${n}${ending}`,
  );
/** Of a kernel beside the plain one. */
const endingOf = ([, kernel]: readonly string[]): string => /_(?:tall|pairs)/.exec(kernel!)?.[0] ?? "";
/** Whether problems with rules have a kernel of the size. */
const hasRules = ([size]: readonly string[]): boolean =>
  !sizesOf(size!).some((n) => WITHOUT_RULES.includes(Number(n)));
const named = ([kernel]: readonly string[]): string[] => [kernel!.replaceAll("`", "").replace("<type>", "*")];

/** The tables, by the headings that each has and no other; where the first cell of a row is empty, that of the row above holds. */
const TABLES: readonly (readonly Column[])[] = [
  [
    {
      heading: "registers (8.0)",
      on: ["8.0"],
      kernels: ([size]) => sizesOf(size!).map((n) => `attention_*_${n}`),
    },
  ],
  [
    {
      heading: `registers ${ALL.join(" / ")}`,
      on: ALL,
      kernels: (row) => backward(row, endingOf(row)),
    },
    {
      heading: "of `_rich`",
      on: ALL,
      kernels: (row) => (endingOf(row) === "" && hasRules(row) ? backward(row, "_rich") : []),
    },
  ],
  ALL.map((capability) => ({ heading: capability, on: [capability], kernels: named })),
];
/** Pages that have them. */
export const REGISTER_PAGES: readonly string[] = [
  "docs/kernels/attention-cuda.md",
  "docs/kernels/paged-decode-cuda.md",
];

/** A page with its columns of registers as they should be, the kernels that these are of, and how many cells there are. */
export interface RegisterPage {
  readonly text: string;
  readonly kernels: readonly string[];
  readonly cells: number;
}
const cellsOf = (line: string): string[] => line.slice(1, -1).split("|");
const trimmed = (line: string): string[] => cellsOf(line).map((cell) => cell.trim());

/** Fills a page's tables in. Throws Error for a kernel that the manifest does not have. */
export function fillRegisters(page: string, { resources }: Pick<Manifest, "resources">): RegisterPage {
  const kernels = new Set<string>();
  let cells = 0;
  const largest = (names: readonly string[], architecture: string): number =>
    Math.max(
      ...names.map((name) => {
        const registers = resources[name]?.[architecture]?.registers;
        if (registers === undefined)
          throw new Error(`a table has ${name}, which the manifest does not have on ${architecture}`);
        kernels.add(name);
        return registers;
      }),
    );
  const fill = (line: string, column: Column, at: number, row: readonly string[]): string => {
    const names = column
      .kernels(row)
      .flatMap((name) => TYPES.map((type) => `heed_cuda_${name.replace("*", type)}`));
    if (names.length === 0) return line;
    cells++;
    const value = column.on.map((capability) => largest(names, ARCHITECTURES[capability]!)).join(" / ");
    return `|${cellsOf(line)
      .map((cell, i) => (i === at ? ` ${value} `.padEnd(cell.length) : cell))
      .join("|")}|`;
  };
  let headings: string[] = [];
  let above = "";
  const text = page.split("\n").map((line, i, lines) => {
    if (!line.startsWith("|") || line.startsWith("| -")) return line;
    if (lines[i + 1]?.startsWith("| -") === true) {
      headings = trimmed(line);
      return line;
    }
    const table = TABLES.find((columns) => columns.every(({ heading }) => headings.includes(heading))) ?? [];
    const row = trimmed(line);
    above = row[0] ||= above;
    return table.reduce(
      (filled, column) => fill(filled, column, headings.indexOf(column.heading), row),
      line,
    );
  });
  return { text: text.join("\n"), kernels: [...kernels].toSorted(), cells };
}
/** What the prebuilt library's manifest says. */
export async function prebuiltManifest(): Promise<Manifest> {
  return Bun.file(join(root, "packages/engine-cuda/prebuilt/linux-x64/manifest.json")).json();
}
if (import.meta.main) {
  const manifest = await prebuiltManifest();
  for (const page of REGISTER_PAGES) {
    const path = join(root, page);
    const { text, cells } = fillRegisters(await Bun.file(path).text(), manifest);
    await Bun.write(path, text);
    console.log(`${page}: ${cells} cells`);
  }
  Bun.spawnSync([process.execPath, "fmt", ...REGISTER_PAGES], { cwd: root });
}
