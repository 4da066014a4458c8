import { allocate, DisposedError, memoryUsage, OutOfMemoryError, Storage, tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { cudaEmulated } from "../src/index.ts";
import { emulatedMissing } from "./support.ts";

describe.skipIf(emulatedMissing !== undefined)("memory of a device", () => {
  test("is counted, and freed with the last handle", () => {
    const engine = cudaEmulated();
    const before = engine.memory();
    const t = allocate(engine, "float32", [1000]);
    const alias = t.alias();
    expect(engine.memory().blocks).toBe(before.blocks + 1);
    expect(engine.memory().inUse).toBeGreaterThanOrEqual(before.inUse + 4000);
    t[Symbol.dispose]();
    expect(engine.memory().blocks).toBe(before.blocks + 1);
    alias[Symbol.dispose]();
    expect(engine.memory().blocks).toBe(before.blocks);
    expect(engine.memory().inUse).toBe(before.inUse);
    expect(() => t.check()).toThrow(DisposedError);
  });
  test("is not the host's: data and buffer are not there", () => {
    using t = tensor([1, 2], undefined, { engine: cudaEmulated() });
    expect(t.storage.buffer).toBeUndefined();
    expect(t.storage.hostPart(0, 8)).toBeUndefined();
    expect(() => t.data).toThrow("await tensor.read()");
  });
  test("begins as NaN on the emulated device, so that what nobody wrote shows", async () => {
    using t = allocate(cudaEmulated(), "float32", [70]);
    expect([...(await t.read())].every(Number.isNaN)).toBe(true);
  });
  test("an empty tensor has an address, and reads as nothing", async () => {
    using t = allocate(cudaEmulated(), "float64", [0, 3]);
    expect(t.storage.address).toBeGreaterThan(0);
    expect(await t.read()).toEqual(new Float64Array(0));
  });
  test("more than there is, is an OutOfMemoryError that changes nothing", () => {
    const engine = cudaEmulated();
    const [before, books] = [engine.memory(), memoryUsage()];
    for (const bytes of [2 ** 40, 2 ** 49]) {
      let error: unknown;
      try {
        allocate(engine, "uint8", [bytes]);
      } catch (caught) {
        error = caught;
      }
      expect(error).toBeInstanceOf(OutOfMemoryError);
      expect((error as OutOfMemoryError).details["bytes"]).toBe(bytes);
    }
    expect(engine.memory().blocks).toBe(before.blocks);
    expect(memoryUsage()).toEqual(books);
    using t = allocate(engine, "uint8", [16]);
    expect(t.size).toBe(16);
  });
  test("is kept for reuse until it is trimmed, but never in debug mode", () => {
    const engine = cudaEmulated();
    const keep = (): number => {
      allocate(engine, "uint8", [100_000])[Symbol.dispose]();
      return engine.memory().kept;
    };
    expect(keep()).toBe(0);
    engine.debug(false);
    try {
      expect(keep()).toBeGreaterThanOrEqual(100_000);
      engine.trim();
      expect(engine.memory().kept).toBe(0);
    } finally {
      engine.debug(true);
    }
  });
  test("that was disposed is not freed again by the collector, when others have its address", async () => {
    const engine = cudaEmulated();
    const disposed = (): void => {
      for (let i = 0; i < 50; i++) engine.alloc(4096).release();
    };
    disposed();
    const others = Array.from({ length: 50 }, () => engine.alloc(4096));
    const { blocks } = engine.memory();
    for (let turn = 0; turn < 6; turn++) {
      Bun.gc(true);
      await Bun.sleep(5);
    }
    expect(engine.memory().blocks).toBe(blocks);
    for (const memory of others) memory.release();
    expect(engine.memory().blocks).toBe(blocks - 50);
  });
  test("that nobody disposed is freed by the collector", async () => {
    const engine = cudaEmulated();
    const before = engine.memory().blocks;
    const lose = (): void => {
      const lost = Array.from({ length: 50 }, () => new Storage(engine.alloc(64), 64));
      expect(lost).toHaveLength(50);
    };
    lose();
    expect(engine.memory().blocks).toBe(before + 50);
    for (let turn = 0; turn < 40 && engine.memory().blocks > before + 2; turn++) {
      Bun.gc(true);
      await Bun.sleep(5);
    }
    expect(engine.memory().blocks).toBeLessThanOrEqual(before + 2); // the stack may hold the last one
  });
});
