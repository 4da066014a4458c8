/** What users do with tensors on any engine, on a device: files, moves between engines, random numbers, words for a debugger. */
import { cpu } from "@heed/engine-cpu";
import {
  cast,
  fill,
  inspect,
  openSafetensors,
  randn,
  scope,
  tensor,
  type Tensor,
  toEngine,
  toFloat64,
  writeSafetensors,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { emulatedMissing, testedEngine } from "./support.ts";

describe.skipIf(emulatedMissing !== undefined)("tensors on a device", () => {
  test("go to a file and come from one, converted where asked", async () => {
    const folder = mkdtempSync(join(tmpdir(), "heed-cuda-"));
    try {
      const engine = testedEngine();
      using whole = tensor(
        Float32Array.from({ length: 600 }, (_, i) => i / 8),
        [20, 30],
        { engine },
      );
      using turned = whole.transpose();
      await writeSafetensors(join(folder, "w"), { whole, turned });
      using file = openSafetensors(join(folder, "w"));
      using back = await file.tensor("whole", { engine });
      expect(await back.read()).toEqual(await whole.read());
      using view = await file.tensor("turned", { engine });
      expect(await view.read()).toEqual(await turned.read());
      expect(back.engine).toBe(engine);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
  test("move to another engine and back with every bit", async () => {
    const bits = Uint16Array.from({ length: 999 }, (_, i) => i * 65);
    using here = tensor(bits, [27, 37], { dtype: "bfloat16", engine: cpu() });
    using there = await toEngine(here.transpose(), testedEngine());
    expect(there.shape).toEqual([37, 27]);
    using again = await toEngine(there.transpose(), cpu());
    expect(await again.read()).toEqual(bits);
  });
  test("are the same random numbers as anywhere", async () => {
    const [host, device] = [cpu(), testedEngine()].map((engine) => randn([50], { seed: 3, engine }));
    expect(await device!.read()).toEqual(await host!.read());
    for (const t of [host, device]) t![Symbol.dispose]();
  });
  test("are named by a debugger, whose elements it cannot have", () => {
    using x = zeros([2, 3], { engine: testedEngine() });
    expect(inspect(x)).toBe("float32[2, 3]");
    expect(() => toFloat64(x)).toThrow("await tensor.read()");
  });
  test("are filled and cast in any view", async () => {
    const engine = testedEngine();
    using x = scope((): Tensor => {
      const all = zeros([3, 4], { dtype: "float64", engine });
      fill(all.slice(1, 1, 3), 2.5);
      return cast(all.transpose(), "int32");
    });
    expect([...((await x.read()) as Int32Array)]).toEqual([0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0]);
  });
});
