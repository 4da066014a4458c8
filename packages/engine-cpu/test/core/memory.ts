import {
  allocate,
  DisposedError,
  type Engine,
  hostIntegers,
  memoryUsage,
  OutOfMemoryError,
  Storage,
  Tensor,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";

export function memorySuite(engine: Engine): void {
  describe("memory", () => {
    test("an allocation is as large as asked for, or larger", () => {
      for (const bytes of [0, 1, 63, 64, 1000, 5 << 20]) {
        const memory = engine.alloc(bytes);
        expect(memory.buffer!.byteLength).toBeGreaterThanOrEqual(bytes);
        expect(memory.address % 64).toBe(0);
        memory.release();
      }
    });
    test("disposing frees at once: the buffer is detached and the books go back", () => {
      const before = memoryUsage();
      const t = allocate(engine, "float32", [1 << 20]);
      const { data } = t;
      data.fill(1);
      expect(memoryUsage().bytes - before.bytes).toBe(4 << 20);
      t[Symbol.dispose]();
      t[Symbol.dispose]();
      expect(data.buffer.detached).toBe(true);
      expect(data.length).toBe(0);
      expect(memoryUsage()).toMatchObject({ bytes: before.bytes, storages: before.storages });
    });
    test("a thousand large tensors that are disposed need the memory of one", () => {
      const before = process.memoryUsage.rss();
      for (let i = 0; i < 1000; i++) {
        using t = allocate(engine, "float32", [4 << 20]);
        t.data.fill(i, 0, 1 << 20);
      }
      expect(process.memoryUsage.rss() - before).toBeLessThan(400 << 20); // 16 GB in all
    });
    test("a view keeps the memory until it is disposed too", () => {
      const t = allocate(engine, "float32", [4]);
      t.data.set([1, 2, 3, 4]);
      const view = t.slice(0, 1, 3);
      t[Symbol.dispose]();
      expect(Array.from(view.data)).toEqual([2, 3]);
      view[Symbol.dispose]();
      expect(() => view.data).toThrow(DisposedError);
    });
    test("memory that somebody else transferred is missed in words, and freed once", () => {
      const t = allocate(engine, "float32", [4]);
      const moved = t.data.buffer.transfer();
      expect(() => t.data).toThrow(DisposedError);
      t[Symbol.dispose]();
      expect(moved.byteLength).toBeGreaterThanOrEqual(16);
    });
    test("an operand whose memory is gone is refused before anything is computed", () => {
      using out = allocate(engine, "float32", [4]);
      out.data.fill(7);
      const disposed = allocate(engine, "float32", [4]);
      disposed[Symbol.dispose]();
      using moved = allocate(engine, "float32", [4]);
      moved.data.buffer.transfer();
      for (const gone of [disposed, moved]) {
        expect(() => engine.unary("neg", gone, out)).toThrow(DisposedError);
        expect(() => engine.binary("add", out, gone, out)).toThrow(DisposedError);
        expect(() => engine.copy(gone, out)).toThrow(DisposedError);
        expect(() => engine.copy(out, gone)).toThrow(DisposedError);
      }
      expect(Array.from(out.data)).toEqual([7, 7, 7, 7]);
    });
    test("more memory than there is throws OutOfMemoryError", () => {
      expect(() => allocate(engine, "float64", [2 ** 46])).toThrow(OutOfMemoryError);
      expect(() => engine.alloc(2 ** 52)).toThrow(OutOfMemoryError);
    });
    test("a buffer that was made elsewhere serves as memory, large or small, and goes when it is released", () => {
      for (const count of [1, 3, 1000, 100_000]) {
        const buffer = new ArrayBuffer(4 * count);
        new Float32Array(buffer).fill(2);
        const memory = engine.wrap!(buffer);
        expect(memory.buffer).toBe(buffer);
        const x = new Tensor(engine, new Storage(memory, 4 * count), "float32", [count], [1], 0);
        using out = allocate(engine, "float32", [count]);
        engine.unary("square", x, out);
        expect(out.data.every((value) => value === 4)).toBe(true);
        engine.unary("neg", x, x);
        expect(new Float32Array(buffer).every((value) => value === -2)).toBe(true);
        x[Symbol.dispose]();
        expect(buffer.detached).toBe(true);
        expect(() => engine.unary("neg", x, out)).toThrow(DisposedError);
      }
    });
    test("a wrapped buffer that somebody transferred is missed in words, and released once", () => {
      const buffer = new ArrayBuffer(16);
      const x = new Tensor(engine, new Storage(engine.wrap!(buffer), 16), "float32", [4], [1], 0);
      expect(buffer.transfer().byteLength).toBe(16);
      expect(() => engine.unary("neg", x, x)).toThrow(DisposedError);
      x[Symbol.dispose]();
    });
    test("an empty view whose place is past the end is nothing, and not an error", async () => {
      for (const dtype of ["float32", "int32"] as const) {
        using t = allocate(engine, dtype, [0, 100]) as Tensor;
        using past = t.slice(1, 100);
        expect((await past.read()).length).toBe(0);
        if (dtype === "int32") expect(hostIntegers(past).length).toBe(0);
      }
    });
    test("an empty tensor reads as nothing", async () => {
      using t: Tensor = allocate(engine, "float32", [3, 0]);
      expect((await engine.read(t)).length).toBe(0);
    });
  });
}
