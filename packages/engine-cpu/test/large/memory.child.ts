/** What the host sees of memory past 4 GiB, and what is left of it when the memory goes. A touch of unmapped memory ends this process. */
import {
  allocate,
  copyInto,
  DisposedError,
  DTYPES,
  fill,
  gather,
  hostIntegers,
  LARGEST_BUFFER,
  memoryUsage,
  recordTape,
  resetPeakMemory,
  ShapeError,
  sum,
  Tensor,
  tensor,
  toFloat64,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { cpu } from "../../src/index.ts";

const GIB = 2 ** 30;
const SIZE = 9 * GIB;
const engine = cpu();
const large = (): Tensor<"uint8"> => allocate(engine, "uint8", [SIZE]) as Tensor as Tensor<"uint8">;
/** Bytes of address space that this process has. */
const mapped = (): number => Number(readFileSync("/proc/self/statm", "utf8").split(" ")[0]) * 4096;
/** Collects until `done`, or for a second. */
async function collect(done: () => boolean): Promise<void> {
  for (let i = 0; i < 100 && !done(); i++) {
    Bun.gc(true);
    await Bun.sleep(10);
  }
}

test.each([0, 1, GIB - 3, 2 ** 32 - 4, 2 ** 32 + 5, 6 * GIB, SIZE - 8])(
  "the host reads and writes the elements from %d on",
  async (from) => {
    using t = large();
    using part = t.slice(0, from, from + 8);
    part.data.set([1, 2, 3, 4, 5, 6, 7, 8]);
    expect([...(await part.read())]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    engine.upload(Uint8Array.of(8, 7, 6, 5, 4, 3, 2, 1), part);
    expect([...toFloat64(part)]).toEqual([8, 7, 6, 5, 4, 3, 2, 1]);
    fill(part, 9);
    using near = tensor(new Uint8Array(8), [8], { engine, dtype: "uint8" });
    copyInto(part, near);
    expect([...near.data]).toEqual(Array(8).fill(9));
    // The same place through a view that overlaps differently, and every other element.
    using around = t.slice(0, Math.max(0, from - 100), Math.min(SIZE, from + 100));
    expect(around.data.filter((x) => x === 9).length).toBe(8);
    using pairs = part.reshape([4, 2]);
    using every = pairs.select(1, 0);
    expect([...(await every.read())]).toEqual([9, 9, 9, 9]);
  },
);
test("memory of up to 4 GiB has a buffer, and more has parts", () => {
  const [fits, more] = [engine.alloc(LARGEST_BUFFER), engine.alloc(LARGEST_BUFFER + 1)];
  expect(fits.buffer!.byteLength).toBe(LARGEST_BUFFER);
  expect(more.buffer).toBeUndefined();
  expect(more.part!(LARGEST_BUFFER, 1).buffer.byteLength).toBeGreaterThanOrEqual(1);
  for (const memory of [fits, more]) memory.release();
});
test("views of up to 4 GiB are seen, wherever they begin, and larger ones are asked to be sliced", async () => {
  using t = large();
  using word = t.slice(0, 5 * GIB + 2, 5 * GIB + 4);
  fill(word, 1);
  for (const from of [GIB + 3, 2 * GIB, 5 * GIB]) {
    using most = t.slice(0, from, Math.min(SIZE, from + LARGEST_BUFFER));
    const { data } = most;
    expect(data.length).toBe(most.size);
    expect([data[5 * GIB + 2 - from], data[5 * GIB + 1 - from]]).toEqual([1, 0]);
  }
  using more = t.slice(0, 7, 8 + LARGEST_BUFFER);
  using pairs = t.reshape([SIZE / 2, 2]);
  using spaced = pairs.select(1, 0); // 4.5 GiB of elements
  resetPeakMemory();
  const { peakBytes } = memoryUsage();
  for (const view of [t, more, spaced]) {
    expect(() => toFloat64(view)).toThrow(ShapeError);
    await expect(view.read()).rejects.toThrow(
      /more than the 4294967296 that the host sees at once; slice it/,
    );
  }
  expect(memoryUsage().peakBytes).toBe(peakBytes); // refused before anything is copied
  expect(() => more.data).toThrow(/a view of 4294967297 bytes .*slice it/);
  expect(() => t.data).toThrow(ShapeError);
});
test("elements of every width are seen where they lie, and nothing of an empty view", () => {
  for (const dtype of ["float64", "float32", "bfloat16", "int64"] as const) {
    using t = allocate(engine, dtype, [SIZE / DTYPES[dtype].bytes]) as Tensor as Tensor<"float64">;
    using end = t.slice(0, -3);
    fill(end, 2);
    expect([...toFloat64(end)]).toEqual([2, 2, 2]);
    expect(end.data.length).toBe(3);
    using nothing = t.slice(0, t.size);
    expect(nothing.data.length).toBe(0);
  }
});
test("a view of nearly 4 GiB that begins at an odd byte leaves other dtypes their alignment", () => {
  using t = large();
  using odd = t.slice(0, GIB + 5, 5 * GIB + 4);
  odd.data[8 * 1000 - 5] = 1;
  t.storage.retain();
  using wide = new Tensor(engine, t.storage, "int64", [1], [1], GIB / 8 + 1000);
  expect([...wide.data]).toEqual([1n]);
});
test("indices and a tape's inputs may lie there", () => {
  using t = allocate(engine, "int32", [SIZE / 4]);
  using indices = t.slice(0, -4);
  indices.data.set([2, 0, 1, 2]);
  using x = tensor([10, 20, 30], undefined, { engine });
  expect(Array.from(hostIntegers(indices))).toEqual([2, 0, 1, 2]);
  using pairs = indices.reshape([2, 2]);
  using every = pairs.select(1, 1);
  expect(Array.from(hostIntegers(every))).toEqual([0, 2]);
  const { outputs, tape } = recordTape(engine, () => (indices.data[0] === 2 ? gather(x, indices) : x));
  expect([...outputs.data]).toEqual([30, 10, 20, 30]);
  tape.replay();
  indices.data[0] = 1;
  expect(() => tape.replay()).toThrow("record again");
  tape[Symbol.dispose]();
  outputs[Symbol.dispose]();
});
test("disposing unmaps at once, and detaches all that the host has seen of it", () => {
  const [before, usage] = [mapped(), memoryUsage()];
  const t = large();
  expect(memoryUsage().bytes - usage.bytes).toBe(SIZE);
  expect(mapped() - before).toBeGreaterThanOrEqual(SIZE);
  const seen = [0, GIB, 5 * GIB, SIZE - 8].map((from) => t.slice(0, from, from + 8));
  const arrays = seen.flatMap(({ data }) => [data, data.subarray(2), new DataView(data.buffer)]);
  const view = t.slice(0, 3, 3 + LARGEST_BUFFER);
  arrays.push(view.data);
  for (const x of [...seen, view]) x[Symbol.dispose]();
  expect(arrays.every(({ buffer }) => !buffer.detached)).toBe(true);
  const alias = t.alias();
  t[Symbol.dispose]();
  t[Symbol.dispose]();
  expect(arrays.every(({ buffer }) => !buffer.detached)).toBe(true);
  alias[Symbol.dispose]();
  expect(arrays.every(({ buffer }) => buffer.detached)).toBe(true);
  expect((arrays[0] as Uint8Array)[0]).toBeUndefined();
  expect(mapped() - before).toBeLessThan(GIB);
  expect(memoryUsage()).toMatchObject({ bytes: usage.bytes, storages: usage.storages });
  for (const use of [() => alias.data, () => sum(alias), () => alias.slice(0, 0, 1)])
    expect(use).toThrow(DisposedError);
});
test("a buffer that was moved elsewhere keeps the memory, after a dispose and after a collection", async () => {
  const before = mapped();
  const moved: ArrayBuffer[] = [];
  const move = (dispose: boolean): void => {
    const t = large();
    const part = t.slice(0, 5 * GIB, 5 * GIB + 8);
    part.data[0] = 7;
    moved.push(part.data.buffer.transfer());
    using nothing = t.slice(0, 5 * GIB, 5 * GIB);
    expect(nothing.data.length).toBe(0);
    expect([...part.data]).toEqual([7, 0, 0, 0, 0, 0, 0, 0]); // the tensor is what it was
    const { buffer } = part.data;
    moved.push(structuredClone(buffer, { transfer: [buffer] }));
    if (!dispose) return;
    part[Symbol.dispose]();
    t[Symbol.dispose]();
  };
  move(true);
  (() => move(false))();
  await collect(() => false);
  expect(mapped() - before).toBeGreaterThanOrEqual(2 * SIZE);
  for (const buffer of moved) expect(new Uint8Array(buffer).indexOf(7)).toBeGreaterThanOrEqual(0);
});
test("memory that nobody disposed is collected, but not while a typed array over it can be reached", async () => {
  const before = mapped();
  const arrays: Uint8Array[] = [];
  const drop = (keep: boolean): void => {
    const { data } = large().slice(0, 5 * GIB, 5 * GIB + 16);
    data.fill(3);
    if (keep) arrays.push(data.subarray(8));
  };
  for (let i = 0; i < 4; i++) drop(i % 2 === 0);
  await collect(() => mapped() - before < 3 * SIZE);
  await collect(() => mapped() - before < 2 * SIZE); // one second more than it took
  expect(mapped() - before).toBeGreaterThanOrEqual(2 * SIZE);
  for (const array of arrays) expect([...array]).toEqual(Array(8).fill(3));
  arrays.length = 0;
  await collect(() => mapped() - before < GIB);
  expect(mapped() - before).toBeLessThan(2 * SIZE); // a conservative stack scan may keep one
});
