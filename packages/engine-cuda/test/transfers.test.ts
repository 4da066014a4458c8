import { type DType, type DTypeArrays, DTYPES, scope, tensor, zeros } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { Context } from "../src/context.ts";
import { settled } from "../src/stream.ts";
import { emulatedMissing, testedEngine } from "./support.ts";

describe.skipIf(emulatedMissing !== undefined)("transfers", () => {
  test.each(Object.keys(DTYPES) as DType[])("%s comes back as it went, in any view", async (dtype) => {
    const engine = testedEngine();
    const bytes = Uint8Array.from({ length: 24 * DTYPES[dtype].bytes }, (_, i) =>
      dtype === "bool" ? i & 1 : (i * 37 + 11) & 255,
    );
    const values = new DTYPES[dtype].array(bytes.buffer, 0, 24) as DTypeArrays[DType];
    using t = tensor(values as DTypeArrays["float32"], [2, 3, 4], { dtype: dtype as "float32", engine });
    expect(new Uint8Array((await t.read()).buffer)).toEqual(bytes);
    using view = t.permute(2, 0, 1).slice(0, 1, 3);
    const order = [1, 2].flatMap((c) => [0, 1].flatMap((a) => [0, 1, 2].map((b) => (a * 3 + b) * 4 + c)));
    const expected = order.map((i) => values[i]!);
    expect([...((await view.read()) as Iterable<unknown>)]).toEqual(expected);
    using part = t.slice(0, 1);
    expect([...((await part.read()) as Iterable<unknown>)]).toEqual(Array.from<unknown>(values.subarray(12)));
  });
  test("an upload has taken the values when it returns", async () => {
    const values = Float32Array.of(1, 2, 3);
    using t = tensor(values, undefined, { engine: testedEngine() });
    values.fill(9);
    expect([...(await t.read())]).toEqual([1, 2, 3]);
  });
  test("more than the staging memory goes in parts", async () => {
    const values = Int32Array.from({ length: 5_000_003 }, (_, i) => Math.imul(i, 2654435761));
    using t = tensor(values, undefined, { dtype: "int32", engine: testedEngine() });
    expect(Bun.hash(new Uint8Array((await t.read()).buffer))).toBe(Bun.hash(new Uint8Array(values.buffer)));
  });
  test("a tensor may be disposed while its elements are on their way", async () => {
    const engine = testedEngine();
    const before = engine.memory().blocks;
    const t = tensor([5, 6, 7], undefined, { engine });
    const reading = t.read();
    t[Symbol.dispose]();
    using next = zeros([3], { engine }); // which may get the same memory
    expect([...(await reading)]).toEqual([5, 6, 7]);
    next[Symbol.dispose]();
    expect(engine.memory().blocks).toBe(before);
  });
  test("a read that is aborted rejects with the reason and leaves nothing behind", async () => {
    const engine = testedEngine();
    using t = tensor([1, 2], undefined, { engine });
    const before = engine.memory();
    const stop = new AbortController();
    stop.abort(new Error("stopped"));
    const { take } = Context.prototype;
    const taken: unknown[] = [];
    Context.prototype.take = function (transfer, to) {
      taken.push(to);
      take.call(this, transfer, to);
    };
    try {
      await expect(engine.read(t, stop.signal)).rejects.toThrow("stopped");
      await expect(t.read({ signal: stop.signal })).rejects.toThrow("stopped");
    } finally {
      Context.prototype.take = take;
    }
    expect(taken).toStrictEqual([undefined]); // the one that was begun is dropped
    expect(engine.memory().blocks).toBeLessThanOrEqual(before.blocks); // the collector may free what tests before left
    expect([...(await t.read())]).toEqual([1, 2]);
  });
  test("sync waits for what was enqueued", async () => {
    const engine = testedEngine();
    using t = scope(() => zeros([1000], { engine }));
    await engine.sync();
    expect((await t.read()).every((x) => x === 0)).toBe(true);
  });
});
describe("waiting for a device", () => {
  test("asks until it is done, and lets the event loop turn meanwhile", async () => {
    let asked = 0;
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    await settled(() => ++asked > 3 && turns > 2);
    clearInterval(timer);
    expect(turns).toBeGreaterThan(2);
  });
  test("what is done at once costs no turn", async () => {
    let turned = false;
    setImmediate(() => (turned = true));
    await settled(() => true);
    expect(turned).toBe(false);
  });
  test("ends with the signal's reason, early and late, and with what asking throws", async () => {
    for (const delay of [0, 10]) {
      const stop = new AbortController();
      setTimeout(() => stop.abort(new Error("stopped")), delay);
      await expect(settled(() => false, stop.signal)).rejects.toThrow("stopped");
    }
    const failing = (): boolean => {
      throw new Error("device failed");
    };
    await expect(settled(failing)).rejects.toThrow("device failed");
  });
});
