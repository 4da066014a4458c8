/** An example whose engine cannot be had: `--engine cuda` without a driver, and an engine that nobody registered. */
import { cudaRefusal } from "@heed/engine-cuda";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";

const folder = join(import.meta.dir, "../../docs/examples");
const EXAMPLES = [...new Bun.Glob("*.ts").scanSync(folder)].toSorted();

/** Runs an example as a user would; every line that it prints, errors included. */
async function run(name: string, ...args: string[]): Promise<{ exitCode: number; lines: string[] }> {
  const child = Bun.spawn([process.execPath, join(folder, name), ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { exitCode: await child.exited, lines: (stdout + stderr).trimEnd().split("\n") };
}
const refusal = cudaRefusal();

describe.skipIf(refusal?.includes("no CUDA driver") !== true)("on a machine without a CUDA driver", () => {
  test.each(EXAMPLES)(
    "%s --engine cuda prints one line that says what to do, and ends with 1",
    async (name) => {
      expect(await run(name, "--engine", "cuda")).toEqual({
        exitCode: 1,
        lines: [`EngineLoadError: ${refusal}`],
      });
    },
  );
  test("that line names the engine that is always there", () => {
    expect(refusal).toContain('use the engine "cpu"');
    expect(refusal).not.toContain("\n");
  });
});
test.each([
  ["that nobody registered", ["--engine", "no-such"], '"no-such"'],
  ["without a name", ["--engine"], '""'],
])("an engine %s is refused in one line too", async (_, args, shown) => {
  const { exitCode, lines } = await run("tensors.ts", ...args);
  expect(lines).toHaveLength(1);
  expect(lines[0]).toStartWith("DeviceError: [engine] no engine ");
  expect(lines[0]).toContain(shown);
  expect(exitCode).toBe(1);
});
