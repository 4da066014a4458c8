/** What becomes of work under way, of tensors and of memory when a call is aborted or fails, or an engine is closed. */
import {
  add,
  copyInto,
  DeviceError,
  getEngine,
  type HeedError,
  OutOfMemoryError,
  recordTape,
  scope,
  sum,
  tensor,
  type Tensor,
  toEngine,
  zeros,
} from "@heed/tensor";
import "@heed/engine-cpu";
import { describe, expect, test } from "bun:test";
import { Context } from "../src/context.ts";
import { openNative } from "../src/devices.ts";
import { createCudaEngine, type CudaEngine } from "../src/engine.ts";
import type { Symbols } from "../src/native.ts";
import { emulatedMissing } from "./support.ts";

let opened = 0;
/** An engine of the test's own. */
const ownEngine = (): CudaEngine => createCudaEngine(`own-${opened++}`, "emulated", 0);

async function failure(run: () => unknown): Promise<HeedError> {
  try {
    await run();
  } catch (error) {
    return error as HeedError;
  }
  throw new Error("nothing failed");
}
/** Runs with methods of contexts replaced. */
async function replaced<K extends "arrived" | "done">(
  name: K,
  by: (this: Context, handle: number) => boolean,
  run: () => Promise<void>,
): Promise<void> {
  const original = Context.prototype[name];
  Context.prototype[name] = by;
  try {
    await run();
  } finally {
    Context.prototype[name] = original;
  }
}

describe.skipIf(emulatedMissing !== undefined)("a read", () => {
  test("that is aborted while it is under way rejects with the reason, and the next one has the elements", async () => {
    const engine = ownEngine();
    using x = tensor([1, 2, 3], [3], { engine });
    const { blocks } = engine.memory();
    await replaced(
      "arrived",
      () => false,
      async () => {
        const stop = new AbortController();
        const reading = x.read({ signal: stop.signal });
        setTimeout(() => stop.abort(new Error("stopped")), 5);
        await expect(reading).rejects.toThrow("stopped");
      },
    );
    expect(engine.memory().blocks).toBe(blocks);
    expect(await x.read()).toEqual(Float32Array.of(1, 2, 3));
    engine.close();
  });
  test("that has ended is not undone by an abort", async () => {
    const engine = ownEngine();
    using x = tensor([4], [1], { engine });
    const stop = new AbortController();
    const values = await x.read({ signal: stop.signal });
    stop.abort();
    expect(values).toEqual(Float32Array.of(4));
    engine.close();
  });
  test("gets its own elements when two hundred are under way, some of them aborted", async () => {
    const engine = ownEngine();
    const { blocks } = engine.memory();
    const all = Array.from({ length: 200 }, (_, i) => tensor([i, -i], [2], { engine }));
    let asked = 0;
    const { arrived, take } = Context.prototype;
    let [taken, dropped] = [0, 0];
    Context.prototype.take = function (transfer, to) {
      if (to === undefined) dropped++;
      else taken++;
      take.call(this, transfer, to);
    };
    await replaced(
      "arrived",
      function (transfer) {
        return ++asked > 300 && arrived.call(this, transfer);
      },
      async () => {
        const stop = new AbortController();
        const reads = all.map((x, i) => x.read(i % 5 === 0 ? { signal: stop.signal } : {}));
        for (const x of all) x[Symbol.dispose]();
        stop.abort(new Error("stopped"));
        for (const [i, { status, ...result }] of (await Promise.allSettled(reads)).entries()) {
          expect(status).toBe(i % 5 === 0 ? "rejected" : "fulfilled");
          if ("value" in result) expect(result.value).toEqual(Float32Array.of(i, -i));
        }
      },
    ).finally(() => (Context.prototype.take = take));
    expect([taken, dropped]).toEqual([160, 40]);
    expect(engine.memory().blocks).toBe(blocks);
    engine.close();
  });
});
describe.skipIf(emulatedMissing !== undefined)("an engine that is closed", () => {
  test("rejects what is under way: reads, sync and elapsed, each with an error that says so", async () => {
    const engine = ownEngine();
    const xs = Array.from({ length: 10 }, (_, i) => tensor([i], [1], { engine }));
    const pending = (): false => false;
    const { arrived, done } = Context.prototype;
    let isHeld = true;
    const held = (then: typeof arrived) =>
      function (this: Context, handle: number): boolean {
        return isHeld ? pending() : then.call(this, handle);
      };
    await replaced("arrived", held(arrived), () =>
      replaced("done", held(done), async () => {
        const under = [...xs.map((x) => x.read()), engine.sync(), engine.elapsed(() => {})];
        const settled = Promise.allSettled<unknown>(under);
        await Bun.sleep(4);
        engine.close();
        isHeld = false;
        for (const result of await settled) {
          expect(result.status).toBe("rejected");
          const { reason } = result as PromiseRejectedResult;
          expect(reason).toBeInstanceOf(DeviceError);
          expect(reason.message).toContain("this engine was closed");
        }
      }),
    );
  });
  test("refuses its tensors in every call, which can still be disposed, and closes once", async () => {
    const engine = ownEngine();
    const [x, y] = [tensor([1, 2], [2], { engine }), zeros([2], { engine })];
    const { outputs, tape } = recordTape(engine, () => add(x, y));
    tape.replay();
    engine.close();
    engine.close();
    for (const use of [
      () => add(x, y),
      () => sum(x),
      () => copyInto(x, y),
      () => x.read(),
      () => toEngine(x, "portable"),
      () => engine.upload(new Float32Array(2), x),
      () => engine.memory(),
      () => engine.trim(),
      () => engine.debug(true),
      () => engine.sync(),
      () => engine.capture!(() => {}),
      () => tape.replay(),
    ]) {
      const error = await failure(use);
      expect(error).toBeInstanceOf(DeviceError);
      expect(error.message).toContain("this engine was closed");
    }
    for (const t of [x, y, outputs, tape]) {
      t[Symbol.dispose]();
      t[Symbol.dispose]();
    }
  });
  test("is left alone by the collector, which finds its tensors, tapes and memory later", async () => {
    const { symbols } = openNative("emulated");
    const engine = ownEngine();
    const lose = (): void => {
      for (let i = 0; i < 40; i++) engine.alloc(64);
      for (let i = 0; i < 10; i++) engine.capture!(() => {});
    };
    lose();
    engine.close();
    const refused: string[] = [];
    const note = (name: string, status: number): number => {
      if (status !== 0) refused.push(name);
      return status;
    };
    const { free, graph_free } = symbols;
    symbols.free = (...args) => note("free", free(...args));
    symbols.graph_free = (...args) => note("graph_free", graph_free(...args));
    try {
      for (let turn = 0; turn < 6; turn++) {
        Bun.gc(true);
        await Bun.sleep(2);
      }
    } finally {
      Object.assign(symbols, { free, graph_free });
    }
    expect(refused).toEqual([]); // as a call to what was closed would be
  });
});
describe.skipIf(emulatedMissing !== undefined)("tensors of two engines", () => {
  test("are not mixed: the error names both, nothing is computed, and a move is explicit, both ways", async () => {
    const [one, two] = [ownEngine(), ownEngine()];
    using x = tensor([1, 2], [2], { engine: one });
    for (const other of [two, getEngine("portable")]) {
      using y = tensor([3, 4], [2], { engine: other });
      const { blocks } = one.memory();
      for (const mix of [() => add(x, y), () => add(y, x), () => copyInto(x, y), () => copyInto(y, x)]) {
        const error = await failure(mix);
        expect(error).toBeInstanceOf(DeviceError);
        expect(error.message).toContain(`"${one.name}"`);
        expect(error.message).toContain(`"${other.name}"`);
        expect(error.message).toContain("toEngine()");
      }
      expect(one.memory().blocks).toBe(blocks);
      expect(await y.read()).toEqual(Float32Array.of(3, 4));
      using there = await toEngine(x, other);
      using both = add(there, y);
      using back = await toEngine(both, one);
      expect(await back.read()).toEqual(Float32Array.of(4, 6));
    }
    for (const engine of [one, two]) engine.close();
  });
});

type Failing = keyof Symbols & (string & {});
/** Library calls that can fail, and something that makes each. */
const CALLS: Partial<Record<Failing, (x: Tensor, engine: CudaEngine) => unknown>> = {
  alloc: (x) => scope(() => void add(x, x)),
  memory: (_, engine) => engine.memory(),
  trim: (_, engine) => engine.trim(),
  debug: (_, engine) => engine.debug(true),
  upload: (_, engine) => scope(() => void tensor([1], [1], { engine })),
  download: (x) => x.read(),
  transfer_done: (x) => x.read(),
  transfer_take: (x) => x.read(),
  mark: (_, engine) => engine.sync(),
  event_done: (_, engine) => engine.sync(),
  elapsed: (_, engine) => engine.elapsed(() => {}),
  kernel: (x) => scope(() => void add(x, x)),
  launch: (x) => scope(() => void add(x, x)),
  graph_begin: (_, engine) => engine.capture!(() => {})[Symbol.dispose](),
  graph_end: (_, engine) => engine.capture!(() => {})[Symbol.dispose](),
  graph_launch: (_, engine) => {
    using captured = engine.capture!(() => {});
    captured.launch();
  },
};
describe.skipIf(emulatedMissing !== undefined)("a call of the library that fails once", () => {
  const WORDS = "testing: CUDA_ERROR_INVALID_VALUE (1): a word of the driver";
  /** Makes the n-th call of that name give a status, by itself and without reaching the library. */
  async function failing(name: Failing, status: number, run: () => Promise<void>): Promise<void> {
    const { symbols } = openNative("emulated");
    const original = symbols[name] as (...args: unknown[]) => unknown;
    const { last_error } = symbols;
    let left = 1;
    Object.assign(symbols, {
      [name]: (...args: unknown[]) => (left-- === 1 ? status : original(...args)),
      last_error: () => (left === 0 ? WORDS : last_error()),
    });
    try {
      await run();
    } finally {
      Object.assign(symbols, { [name]: original, last_error });
    }
    expect(left).toBeLessThan(1); // it was made
  }
  for (const [name, use] of Object.entries(CALLS))
    for (const [status, type] of [
      [-4, DeviceError],
      [-2, OutOfMemoryError],
    ] as const)
      test(`${name}: ${type.name}, nothing is left, and the next call works`, async () => {
        const engine = ownEngine();
        using x = tensor([1, 2], [2], { engine });
        const { blocks } = engine.memory();
        await failing(name as Failing, status, async () => {
          const error = await failure(() => use(x, engine));
          expect(error).toBeInstanceOf(type);
          expect(error.message).toContain(WORDS);
          expect(error.details).toMatchObject({
            device: 0,
            driverError: "CUDA_ERROR_INVALID_VALUE",
            driverCode: 1,
          });
        });
        expect(engine.memory().blocks).toBe(blocks);
        await use(x, engine);
        using y = add(x, x);
        expect(await y.read()).toEqual(Float32Array.of(2, 4));
        expect(engine.memory().blocks).toBe(blocks + 1);
        expect(engine.lost).toBe(false);
        engine.close();
      });
  test("while a graph is recorded ends the recording, however it fails", async () => {
    const engine = ownEngine();
    using x = tensor([1, 2], [2], { engine });
    const { blocks } = engine.memory();
    for (const name of ["launch", "alloc", "graph_end"] as const) {
      await failing(name, -4, async () => {
        expect(await failure(() => engine.capture!(() => scope(() => void add(x, x))))).toBeInstanceOf(
          DeviceError,
        );
      });
      expect(await x.read()).toEqual(Float32Array.of(1, 2)); // refused while one is recorded
      engine.capture!(() => {})[Symbol.dispose]();
      expect(engine.memory().blocks).toBe(blocks);
    }
    // The recording fails, and so does ending it.
    await failing("graph_end", -4, async () => {
      const broken = (): never => {
        throw new Error("not to be recorded");
      };
      expect((await failure(() => engine.capture!(broken))).message).toBe("not to be recorded");
    });
    engine.capture!(() => {})[Symbol.dispose]();
    engine.close();
  });
  test("while a tape is captured leaves the tape as it was: the next replay captures it", async () => {
    const engine = ownEngine();
    using x = tensor([1, 2], [2], { engine });
    const { outputs, tape } = recordTape(engine, () => scope(() => add(add(x, x), x)));
    const { blocks } = engine.memory();
    for (const name of ["graph_begin", "launch", "graph_end", "graph_launch"] as const)
      await failing(name, -4, async () => {
        expect(await failure(() => tape.replay())).toBeInstanceOf(DeviceError);
      });
    expect(engine.memory().blocks).toBe(blocks);
    using other = tensor([3, 4], [2], { engine });
    copyInto(other, x);
    tape.replay();
    expect(tape.isCaptured).toBe(true);
    expect(await outputs.read()).toEqual(Float32Array.of(9, 12));
    // The tape holds what it uses: nobody else gets the memory of an input that was disposed.
    x[Symbol.dispose]();
    using others = zeros([2], { engine });
    tape.replay();
    expect(await outputs.read()).toEqual(Float32Array.of(9, 12));
    expect(await others.read()).toEqual(Float32Array.of(0, 0));
    for (const t of [outputs, tape]) t[Symbol.dispose]();
    expect((await failure(() => tape.replay())).code).toBe("HEED_DISPOSED");
    engine.close();
  });
  test("when memory is given back: the collector frees it later", async () => {
    const engine = ownEngine();
    const { blocks } = engine.memory();
    const lose = (): Promise<HeedError> => failure(() => engine.alloc(64).release());
    for (let n = 0; n < 20; n++)
      await failing("free", -4, async () => {
        expect(await lose()).toBeInstanceOf(DeviceError);
      });
    for (let turn = 0; turn < 40 && engine.memory().blocks > blocks + 2; turn++) {
      Bun.gc(true);
      await Bun.sleep(5);
    }
    expect(engine.memory().blocks).toBeLessThanOrEqual(blocks + 2); // the stack may hold the last one
    engine.close();
  });
});
