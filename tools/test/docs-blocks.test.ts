/** The ```ts blocks of the pages: each type checks as it stands, and is run as it stands or on an engine that is everywhere. */
import { cudaRefusal } from "@heed/engine-cuda";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

const root = join(import.meta.dir, "../..");
/** Below the root, so that packages are found; git and the type checker of the whole project pass it by. */
const folder = join(root, "out", `docs-blocks-${process.pid}`);
const PAGES = ["*.md", "docs/**/*.md", "packages/*/*.md"].flatMap((pages) => [
  ...new Bun.Glob(pages).scanSync(root),
]);
interface Block {
  /** The page, and the number of the block in it. */
  readonly name: string;
  readonly code: string;
}
const blocks = async (page: string): Promise<Block[]> => {
  const found = (await Bun.file(join(root, page)).text()).matchAll(/^```ts\n(.*?)^```$/gms);
  return [...found].map(([, code], n) => ({ name: `${page} ${n + 1}`, code: code! }));
};
const BLOCKS = (await Promise.all(PAGES.map(blocks))).flat();

/** Runs Bun on a script of that text. */
async function bun(code: string, ...command: string[]): Promise<{ exitCode: number; output: string }> {
  const path = join(folder, `${Bun.hash(code).toString(36)}.ts`);
  await Bun.write(path, code);
  const child = Bun.spawn([process.execPath, ...command, path], {
    cwd: root,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { exitCode: await child.exited, output: stdout + stderr };
}
/** The text with each of the pairs replaced; fails when the page no longer has one. */
function replaced(code: string, pairs: readonly (readonly [what: string, by: string])[]): string {
  for (const [what, by] of pairs) {
    expect(code).toContain(what);
    code = code.replace(what, () => by);
  }
  return code;
}
/** How each block is run, and what it prints then. */
const RUNS: Readonly<Record<string, (code: string) => Promise<void>>> = {
  "docs/guides/engine-cuda.md 1": async (code) => {
    if (cudaRefusal() !== undefined) expect(await bun(code)).toEqual({ exitCode: 0, output: "" });
    if (cudaRefusal("cuda-emulated") !== undefined) return;
    const emulated = replaced(code, [
      ["import { cuda,", "import { cudaEmulated as cuda,"],
      ["cudaRefusal()", 'cudaRefusal("cuda-emulated")'],
      ["[1, 4096, 32, 128]", "[1, 40, 2, 128]"],
      ["await output.read();", "console.log(engine.name, `${output}`, (await output.read()).length);"],
    ]);
    expect(await bun(emulated)).toEqual({
      exitCode: 0,
      output: "cuda-emulated bfloat16[1, 40, 2, 128] 10240\n",
    });
  },
};
/** The quick start has a test of its own, in docs.test.ts. */
const RUN_ELSEWHERE: string[] = ["README.md 1"];

describe("a block of TypeScript in a page", () => {
  beforeAll(() => mkdir(folder, { recursive: true }));
  afterAll(() => rm(folder, { recursive: true, force: true }));

  test("is listed above with how it is run", () => {
    expect(BLOCKS.map(({ name }) => name).toSorted()).toEqual(
      [...RUN_ELSEWHERE, ...Object.keys(RUNS)].toSorted(),
    );
  });
  test.each(BLOCKS)("type checks as it stands: $name", async ({ code }) => {
    const { exitCode, output } = await bun(code, "check", "--no-pretty");
    expect(output).toContain("No type errors");
    expect(exitCode).toBe(0);
  });
  test.each(Object.entries(RUNS))("runs: %s", (name, run) =>
    run(BLOCKS.find((block) => block.name === name)!.code),
  );
  test("with an error of types is found", async () => {
    const { exitCode, output } = await bun(`import { randn } from "@heed/tensor";\nrandn("5");\n`, "check");
    expect(output).toContain("TS2345");
    expect(exitCode).not.toBe(0);
  });
});
