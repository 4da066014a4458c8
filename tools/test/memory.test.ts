import { describe, expect, test } from "bun:test";
import { join } from "node:path";

interface Measured {
  readonly above: number;
  readonly scratch: number;
  readonly finite: boolean;
}
async function measure(length: number): Promise<Measured> {
  const child = Bun.spawn(
    [process.execPath, join(import.meta.dir, "child/long-attention.ts"), String(length)],
    { stdout: "pipe", stderr: "inherit" },
  );
  const text = await child.stdout.text();
  expect(await child.exited).toBe(0);
  return JSON.parse(text) as Measured;
}
describe.skipIf(process.platform !== "linux")("memory of attention forward and backward", () => {
  test("stays under 200 MB above the tensors at 32,768 tokens", async () => {
    const { above, finite } = await measure(32_768);
    expect(finite).toBe(true);
    expect(above).toBeLessThan(200e6);
  }, 120_000);
  test("of the kernels grows no faster than the length", async () => {
    const [short, long] = [await measure(4096), await measure(16_384)];
    expect(long.scratch).toBeLessThan(4.2 * short.scratch + 1e6);
  }, 120_000);
});
