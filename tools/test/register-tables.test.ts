/** Registers in the pages on kernels, against the manifest of the prebuilt library. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { tensorCores as backwardCores } from "../../packages/engine-cuda/src/fused/attention/backward-schedule.ts";
import { tensorCores } from "../../packages/engine-cuda/src/fused/attention/schedule.ts";
import { fillRegisters, prebuiltManifest, REGISTER_PAGES } from "../cuda/registers.ts";

const root = join(import.meta.dir, "../..");
const manifest = await prebuiltManifest();
const pages = await Promise.all(
  REGISTER_PAGES.map(async (page) => {
    const text = await Bun.file(join(root, page)).text();
    return { page, text, filled: fillRegisters(text, manifest) };
  }),
);
/** Rows of the tables, however wide their columns are. */
const rows = (text: string): string[] =>
  text
    .split("\n")
    .filter((line) => line.startsWith("| "))
    .map((line) => line.replaceAll(/ +/g, " "));
/** Kernels that have a row. */
const LISTED =
  /^heed_cuda_(attention_(bf16|f16)_\d+|attention_backward_(keys|rows)_(bf16|f16)_\w+|(decode|latent)_\w+)$/;

describe("tables of registers", () => {
  test.each(pages)(
    "$page: every cell is the manifest's; after a build, `bun tools/cuda/registers.ts` writes them",
    ({ text, filled }) => {
      expect(rows(text)).toEqual(rows(filled.text));
    },
  );
  test("every kernel on tensor cores is in one", () => {
    const listed = new Set(pages.flatMap(({ filled }) => filled.kernels));
    const wanted = Object.keys(manifest.resources).filter((kernel) => LISTED.test(kernel));
    expect(wanted.length).toBeGreaterThan(50);
    expect(wanted.filter((kernel) => !listed.has(kernel))).toEqual([]);
  });
  test("cells are found by their headings: 6 of forward, 18 of backward, 48 of decode", () => {
    expect(pages.map(({ filled }) => filled.cells)).toEqual([6 + 18, 48]);
  });
  test("a cell has the larger of both types, on each architecture; other columns stay as they are", () => {
    const of = (...registers: number[]) =>
      Object.fromEntries(
        ["sm_80", "sm_90a", "sm_100", "sm_120"].map((name, i) => [
          name,
          { registers: registers[i]!, stack: 0, spillStores: 0, spillLoads: 0, shared: 0 },
        ]),
      );
    const resources = {
      heed_cuda_attention_backward_rows_f16_128: of(1, 20, 3, 40),
      heed_cuda_attention_backward_rows_bf16_128: of(10, 2, 30, 4),
      heed_cuda_attention_backward_rows_f16_128_rich: of(5, 6, 7, 8),
      heed_cuda_attention_backward_rows_bf16_128_rich: of(5, 6, 7, 8),
      heed_cuda_attention_backward_rows_f16_128_tall: of(1, 1, 1, 1),
      heed_cuda_attention_backward_rows_bf16_128_tall: of(2, 1, 2, 1),
    };
    const page = (...cells: string[]) =>
      [
        "| head size | kernel | tile | registers 8.0 / 9.0 / 10.0 / 12.0 | of `_rich` |",
        "| --- | --- | --- | --- | --- |",
        `| 128, values 64 | by rows | 9 | ${cells[0]} | ${cells[1]} |`,
        `|  | by rows, \`_tall\` | 9 | ${cells[2]} | |`,
        "",
      ].join("\n");
    const filled = fillRegisters(page("0", "0", "0"), { resources });
    expect(filled.text).toBe(page("10 / 20 / 30 / 40", "5 / 6 / 7 / 8", "2 / 1 / 2 / 1"));
    expect(filled).toMatchObject({ cells: 3, kernels: Object.keys(resources).toSorted() });
    expect(() => fillRegisters(page("0", "0", "0").replace("128", "80"), { resources })).toThrow(
      "heed_cuda_attention_backward_rows_f16_80, which the manifest does not have on sm_80",
    );
  });
});

describe("tiles in the tables of attention", () => {
  /** Rows of the table whose heading row has that cell: the cells, and head sizes of keys and values. */
  function tableOf(heading: string): { cells: string[]; D: number; Dv: number }[] {
    const lines = pages[0]!.text.split("\n");
    const from = lines.findIndex((line) => line.startsWith("|") && line.includes(heading)) + 2;
    let size = "";
    return lines.slice(from, lines.indexOf("", from)).map((line) => {
      const cells = line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim());
      size = cells[0] ||= size;
      const [D, Dv] = /(\d+)(?:, values (\d+)|, in slices of (\d+) values)?$/
        .exec(size)!
        .slice(1)
        .filter(Boolean);
      return { cells, D: Number(D), Dv: Number(Dv ?? D) };
    });
  }
  const pair = (cell: string): [number, number] => cell.split(" x ").map(Number) as [number, number];
  const bytesOf = (numbers: number): number => 2 * numbers + 16; // a row in shared memory: fragments.cuh

  test("forward's are the schedule's", () => {
    const table = tableOf("rows x keys");
    expect(table).toHaveLength(6);
    for (const { cells, D, Dv } of table) {
      const [rows, keys] = pair(cells[1]!);
      const sizes = { D, Dv, Hkv: 1, tiles: (n: number) => n };
      const ampere = {
        multiprocessors: 108,
        sharedPerBlock: 163 * 1024,
        computeCapability: 80,
        level2Bytes: 40 * 2 ** 20,
      };
      const { launch, ...schedule } = tensorCores("bfloat16", sizes, false, ampere)!;
      const shared = (rows + keys) * bytesOf(D) + keys * bytesOf(Dv);
      expect([cells[0], schedule.rows, launch.threads / 32, launch.shared]).toEqual([
        cells[0],
        rows,
        Number(cells[2]),
        shared,
      ]);
    }
  });
  test("backward's are the schedule's, shared memory too", () => {
    const table = tableOf("own x other");
    expect(table).toHaveLength(12);
    const sizes = { B: 1, S: 1280, Sk: 1280, Hq: 1, Hkv: 1 };
    for (const { cells, D, Dv } of table) {
      const [own, other] = pair(cells[2]!);
      const ending = /_(?:tall|pairs)/.exec(cells[1]!)?.[0] ?? "";
      const isPaired = ending === "_pairs" || (cells[1]!.includes("keys") && D < 128); // backward_pairs.cuh
      const limits = {
        multiprocessors: 1,
        sharedPerBlock: (ending === "" ? 99 : 227) * 1024, // of 8.6 and of 9.0: two large blocks do not fit, or do
        computeCapability: 90,
        level2Bytes: 1,
      };
      const schedule = backwardCores("bfloat16", { ...sizes, D, Dv }, false, limits)!;
      const { launch, tiles } = cells[1]!.includes("keys") ? schedule.keys : schedule.rows;
      const stages = isPaired ? 3 : 2; // of the other side; and float32 weights of two tiles
      const shared =
        (own + stages * other) * (bytesOf(D) + bytesOf(Dv)) + (isPaired ? 2 * own * other * 4 : 0);
      expect([
        cells[0],
        cells[1],
        sizes.S / tiles,
        launch.shared,
        /_(?:tall|pairs)/.exec(launch.kernel)?.[0] ?? "",
      ]).toEqual([cells[0], cells[1], own, shared, ending]);
      expect(cells[3]).toBe(`${Math.round(shared / 1024)} KB`);
    }
  });
});
