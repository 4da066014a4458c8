import { afterAll, describe, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { checkStructure, importsOf } from "../check-imports.ts";

const root = join(import.meta.dir, "../..");
const quickStart = join(root, "tools", `quick-start-${process.pid}.ts`);

/** Runs a script as a user would, in a process of its own. */
async function run(path: string): Promise<{ exitCode: number; output: string }> {
  const child = Bun.spawn([process.execPath, path], { cwd: root, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { exitCode: await child.exited, output: stdout + stderr };
}
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
  test.each([
    ["tensors", "HEED_SHAPE"],
    ["attention", "dq float32[2, 64, 8, 32]"],
    ["kv-cache", "lengths 23, 10"],
    ["training-step", "loss "],
  ])("the example %s runs", async (name, expected) => {
    const { exitCode, output } = await run(join(root, `docs/examples/${name}.ts`));
    expect(output).toContain(expected);
    expect(exitCode).toBe(0);
  });
  test("every example is listed above", async () => {
    const listed = ["attention.ts", "kv-cache.ts", "tensors.ts", "training-step.ts"];
    expect([...new Bun.Glob("*.ts").scanSync(join(root, "docs/examples"))].toSorted()).toEqual(listed);
  });
  test("links between pages lead somewhere", async () => {
    for (const page of ["README.md", ...new Bun.Glob("docs/**/*.md").scanSync(root)]) {
      const text = await Bun.file(join(root, page)).text();
      for (const [, link] of text.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
        expect([page, link, await Bun.file(join(root, page, "..", link!)).exists()]).toEqual([
          page,
          link,
          true,
        ]);
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
