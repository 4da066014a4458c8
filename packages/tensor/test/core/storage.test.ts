import {
  add,
  attention,
  DisposedError,
  DeviceError,
  type Engine,
  memoryUsage,
  ones,
  resetPeakMemory,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
  LeakError,
  trackLeaks,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";

describe.each([...engines])("memory on %s", (engine) => {
  test("the last handle frees the memory at once, and disposing again does nothing", () => {
    const before = memoryUsage();
    const t = zeros([10, 10], { engine });
    const view = t.slice(0, 2, 4);
    expect(memoryUsage().storages).toBe(before.storages + 1);
    expect(memoryUsage().bytes).toBe(before.bytes + 400);
    const memory = t.storage.buffer!;
    t[Symbol.dispose]();
    t[Symbol.dispose]();
    expect(memory.detached).toBe(false);
    expect([...toFloat64(view)]).toEqual(Array(20).fill(0));
    view[Symbol.dispose]();
    expect(memory.detached).toBe(true);
    expect(memoryUsage().bytes).toBe(before.bytes);
  });
  test("every use of a disposed handle is a DisposedError, also while another handle is alive", () => {
    const t = zeros([1, 2, 2, 4], { engine });
    using other = t.alias();
    t[Symbol.dispose]();
    const uses: ((x: Tensor<"float32">) => unknown)[] = [
      (x) => x.data,
      (x) => x.alias(),
      (x) => x.slice(0, 0),
      (x) => x.transpose(),
      (x) => x.reshape([-1]),
      (x) => x.contiguous(),
      (x) => toFloat64(x),
      (x) => add(x, 1),
      (x) => add(other, x),
      (x) => attention(x, other, other),
      (x) => attention(other, other, x),
      (x) => x.check(),
    ];
    for (const use of uses) expect(() => use(t)).toThrow(DisposedError);
    expect(t.read()).rejects.toBeInstanceOf(DisposedError);
    expect(String(t)).toBe("float32[1, 2, 2, 4]");
    expect(t.disposed).toBe(true);
  });
  test("memory that somebody transferred away is a DisposedError, and can still be disposed", () => {
    const before = memoryUsage().bytes;
    const t = ones([4], { engine });
    const stolen = t.data.buffer.transfer();
    expect(stolen.byteLength).toBeGreaterThanOrEqual(16);
    expect(() => t.data).toThrow(DisposedError);
    expect(() => add(t, 1)).toThrow(DisposedError);
    expect(() => t.storage.address).toThrow(DisposedError);
    t[Symbol.dispose]();
    expect(memoryUsage().bytes).toBe(before);
  });
  test("data is the live memory of a contiguous tensor, and refused for others", () => {
    using t = tensor(
      [
        [1, 2],
        [3, 4],
      ],
      undefined,
      { engine },
    );
    using row = t.select(0, 1);
    row.data[0] = 7;
    expect([...t.data]).toEqual([1, 2, 7, 4]);
    using turned = t.transpose();
    expect(() => turned.data).toThrow(ShapeError);
  });
  test("read gives a copy, row-major, and can be aborted", async () => {
    using t = tensor(
      [
        [1, 2],
        [3, 4],
      ],
      undefined,
      { engine },
    );
    using turned = t.transpose();
    const copy = await turned.read();
    expect([...copy]).toEqual([1, 3, 2, 4]);
    copy[0] = 9;
    expect(t.data[0]).toBe(1);
    expect(t.read({ signal: AbortSignal.abort(new Error("stop")) })).rejects.toThrow("stop");
  });
  test("a leak is reported with the stack of its allocation until it is freed", () => {
    using tracker = trackLeaks();
    const { leaked } = leakHere(engine);
    expect(tracker.report()).toHaveLength(1);
    expect(tracker.report()[0]!.bytes).toBe(32);
    expect(tracker.report()[0]!.stack).toContain("leakHere");
    expect(() => tracker.check()).toThrow(LeakError);
    expect(() => tracker.check()).toThrow(/1 storages? .*still alive[\s\S]*leakHere/);
    leaked[Symbol.dispose]();
    tracker.check();
    expect(tracker.report()).toHaveLength(0);
  });
  test("a tracker sees nothing from before its creation or after its disposal", () => {
    using early = ones([1], { engine });
    const tracker = trackLeaks();
    expect(tracker.report()).toHaveLength(0);
    tracker[Symbol.dispose]();
    using late = ones([1], { engine });
    expect(tracker.report()).toHaveLength(0);
    expect(early.size + late.size).toBe(2);
  });
  test("the peak is the largest number of bytes since it was reset", () => {
    resetPeakMemory();
    const { bytes } = memoryUsage();
    zeros([1000], { engine })[Symbol.dispose]();
    expect(memoryUsage().peakBytes).toBeGreaterThanOrEqual(bytes + 4000);
    resetPeakMemory();
    expect(memoryUsage().peakBytes).toBe(memoryUsage().bytes);
  });
});
function leakHere(engine: string): { readonly leaked: Tensor } {
  using q = ones([1, 2, 1, 4], { engine });
  const leaked = attention(q, q, q); // not a tail call, which would leave no frame
  return { leaked };
}
test("memory that the host cannot read is not handed out", () => {
  const alloc: Engine["alloc"] = () => ({ buffer: undefined, address: 1, release: () => {} });
  const device = { name: "device", device: "cuda", alloc, upload: () => {} } as unknown as Engine;
  using t = tensor(Float32Array.of(1), undefined, { engine: device });
  expect(() => t.data).toThrow(DeviceError);
});
test("a storage that the collector took is off the books", async () => {
  const before = memoryUsage().storages;
  (() => void Array.from({ length: 50 }, () => zeros([8], { engine: "portable" })))();
  for (let i = 0; i < 50 && memoryUsage().storages > before + 5; i++) {
    Bun.gc(true);
    await Bun.sleep(1);
  }
  expect(memoryUsage().storages).toBeLessThanOrEqual(before + 5); // a conservative stack scan may keep a few
});
