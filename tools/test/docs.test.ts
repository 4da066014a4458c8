import { cudaRefusal } from "@heed/engine-cuda";
import { afterAll, describe, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { checkStructure, importsOf } from "../check-imports.ts";

const root = join(import.meta.dir, "../..");
const quickStart = join(root, "tools", `quick-start-${process.pid}.ts`);

/** Runs a script as a user would, in a process of its own. */
async function run(path: string, ...args: string[]): Promise<{ exitCode: number; output: string }> {
  const child = Bun.spawn([process.execPath, path, ...args], { cwd: root, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { exitCode: await child.exited, output: stdout + stderr };
}
/** Examples and a text that each prints. */
const EXAMPLES: [name: string, expected: string][] = [
  ["tensors", "HEED_SHAPE"],
  ["attention", "dq float32[2, 64, 8, 32]"],
  ["kv-cache", "lengths 23, 10"],
  ["kv-cache-fork", "after a token each: 5 local, 10 global"],
  ["streaming-window", "at most 4 pages; 25 without a window\nequal to full attention under the mask: true"],
  ["kv-cache-prefix", "pages 1 2 3 and 1 2 4"],
  ["speculative-decoding", "32 tokens in 11 steps of the target\nequal to a token a step: true"],
  ["beam-search", "at most 14 pages for 4 beams; 48 if each had its own"],
  ["parallel-sampling", "4 forks: 104 tokens on 7 pages\n1 more each: 108 tokens on 10 pages"],
  ["cache-tiers", "the same answers: true"],
  ["training-step", "loss "],
  ["scaled-dot-product-attention", "equal true"],
  ["grouped-query-attention", "built again: same bits true"],
  ["rotary-embedding", "second half equal true\nundone true"],
  ["linear-and-norm", "linear bias float32[48]"],
  ["attention-head", "bidirectional float32[1, 6, 16]: first token sees the last true"],
  ["global-and-local-attention", "equal to one pass true"],
  ["multi-head-latent-attention", "equal to expanded true"],
  ["qk-norm", "over the tensor 0.462910, 0.925819, 1.388729"],
  ["sliding-window-mask", "equal true"],
  ["builders", "same bits true\nHEED_ARGUMENT"],
  ["backpropagation-modes", "through both chunks, equal to one pass true"],
  ["shared-keys-values", "of the donor's q_proj.weight, k_proj.weight, v_proj.weight, o_proj.weight"],
  ["tape", "20 tokens, the same bits as plain calls: true"],
  ["decode-buckets", "30 steps by 3 tapes, the same bits as plain calls: true"],
  ["mapped-weights", "mapped: 0 allocated, 327680 of the file\nsame bits true"],
  ["sparse-selection", "all selected equals attention true"],
];
/** Device engines included: an example reads what it computed, and never looks at memory that the host may not have. */
const ENGINES = ["cpu", ...(cudaRefusal("cuda-emulated") === undefined ? ["cuda-emulated"] : [])];
/** What a device prints otherwise: its weights are copies of the file's. */
const ON_A_DEVICE: Readonly<Record<string, string>> = {
  "decode-buckets": "bits as plain calls: true\n3 of them launched as graphs",
  "mapped-weights": "mapped: 327680 allocated, 0 of the file",
};
/** Examples that take arguments and have tests of their own, and what examples share. */
const RUN_ELSEWHERE: string[] = ["decoder.ts", "engine.ts", "tiny-decoder.ts"];

describe("documentation", () => {
  afterAll(() => rm(quickStart, { force: true }));

  test("the README's quick start is ten lines that run as they stand", async () => {
    const readme = await Bun.file(join(root, "README.md")).text();
    const code = /```ts\n([\s\S]*?)```/.exec(readme)![1]!;
    expect(code.split("\n").filter((line) => line.trim() !== "")).toHaveLength(10);
    await Bun.write(quickStart, code);
    const { exitCode, output } = await run(quickStart);
    expect(output).toContain("float32[1, 5, 256]");
    expect(exitCode).toBe(0);
  });
  for (const engine of ENGINES)
    test.each(EXAMPLES)(`the example %s runs on ${engine}`, async (name, expected) => {
      const { exitCode, output } = await run(join(root, `docs/examples/${name}.ts`), "--engine", engine);
      expect(output).toContain((engine === "cpu" ? undefined : ON_A_DEVICE[name]) ?? expected);
      expect(exitCode).toBe(0);
    });
  test("every example is listed above", async () => {
    const listed = [...EXAMPLES.map(([name]) => `${name}.ts`), ...RUN_ELSEWHERE];
    expect([...new Bun.Glob("*.ts").scanSync(join(root, "docs/examples"))].toSorted()).toEqual(
      listed.toSorted(),
    );
  });
  test("links between pages lead somewhere, to a heading where they name one", async () => {
    const anchorOf = (heading: string): string =>
      heading
        .toLowerCase()
        .replaceAll(/[^\w\s-]/g, "")
        .replaceAll(" ", "-");
    for (const page of ["README.md", ...new Bun.Glob("docs/**/*.md").scanSync(root)]) {
      const text = await Bun.file(join(root, page)).text();
      for (const [, link, anchor] of text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)) {
        const target = Bun.file(link === "" ? join(root, page) : join(root, page, "..", link!));
        expect([page, link, await target.exists()]).toEqual([page, link, true]);
        if (anchor === undefined) continue;
        const headings = [...(await target.text()).matchAll(/^#+ (.*)$/gm)].map(([, text]) =>
          anchorOf(text!),
        );
        expect([page, anchor, headings.includes(anchor)]).toEqual([page, anchor, true]);
      }
    }
  });
});
describe("structure check", () => {
  const file = (path: string, text: string): { path: string; text: string } => ({ path, text });

  test("finds imports, types apart", () => {
    const text =
      'import { a } from "./a.ts";\nimport type { B } from "b";\nexport * from "./c.ts";\nimport "d";\nawait import("e");\n';
    expect(importsOf(text).map(({ to, isType }) => [to, isType])).toEqual([
      ["./a.ts", false],
      ["b", true],
      ["./c.ts", false],
      ["d", false],
      ["e", false],
    ]);
  });
  test("reports an import against the arrows", () => {
    expect(checkStructure([file("packages/kvcache/src/x.ts", 'import "@heed/attention";')])[0]).toContain(
      "may not import @heed/attention",
    );
  });
  test("reports bun:ffi outside native.ts", () => {
    expect(
      checkStructure([file("packages/engine-cpu/src/x.ts", 'import { dlopen } from "bun:ffi";')])[0],
    ).toContain("bun:ffi");
  });
  test("reports an upward import within tensor, but not of a type", () => {
    const up = (kind: string): string[] =>
      checkStructure([file("packages/tensor/src/core/x.ts", `import ${kind}{ y } from "../ops/y.ts";`)]);
    expect(up("")[0]).toContain("point down");
    expect(up("type ")).toEqual([]);
  });
  test("reports a cycle of values", () => {
    const sources = [
      file("packages/tensor/src/core/a.ts", 'import { b } from "./b.ts";'),
      file("packages/tensor/src/core/b.ts", 'import { a } from "./a.ts";'),
    ];
    expect(checkStructure(sources).join()).toContain("cycle");
  });
  test("reports a file that has outgrown its limit", () => {
    expect(checkStructure([file("packages/tensor/src/core/long.ts", "\n".repeat(401))])[0]).toContain(
      "401 lines",
    );
  });
});
