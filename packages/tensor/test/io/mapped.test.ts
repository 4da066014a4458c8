import {
  type ByteSource,
  copyInto,
  type DType,
  DisposedError,
  FormatError,
  getEngine,
  isFloat,
  matmul,
  memoryUsage,
  openSafetensors,
  OutOfMemoryError,
  randn,
  resetPeakMemory,
  SafetensorsFile,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
  trackLeaks,
  writeSafetensors,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { fakeEngine } from "../engine/fake.ts";
import { engines } from "../engines.ts";
import { fileOf, temporaryFolder } from "./files.ts";

const WIDTH: Readonly<Record<string, [dtype: DType, bytes: number]>> = {
  F64: ["float64", 8],
  F32: ["float32", 4],
  F16: ["float16", 2],
  BF16: ["bfloat16", 2],
  I64: ["int64", 8],
  I32: ["int32", 4],
  U8: ["uint8", 1],
  BOOL: ["bool", 1],
};
const bytesOf = (t: Tensor): string => {
  const { buffer, byteOffset, byteLength } = t.data;
  return Buffer.from(buffer, byteOffset, byteLength).toString("hex");
};
const X = { x: { dtype: "F32", shape: [4], data_offsets: [0, 16] } };
/** Spaces after a header that put the data at a multiple of 8. */
const toEight = (header: object): number => -JSON.stringify(header).length & 7;
/** A file of "x", float32[4], of one value throughout. */
const filled = (value: number): Uint8Array =>
  fileOf(X, new Uint8Array(new Float32Array(4).fill(value).buffer), toEight(X));

describe.each([...engines])("mapped tensors on %s", (engine) => {
  test("any tensor of any file has the bits of a copied one, and is mapped where it says it can be", () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    const part = fc.record({
      format: fc.constantFrom(...Object.keys(WIDTH)),
      shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 3 }),
    });
    const run = fc.property(
      fc.array(part, { maxLength: 6 }),
      fc.nat({ max: 9 }),
      fc.nat(),
      (parts, padding, seed) => {
        const header: Record<string, unknown> = {};
        let at = 0;
        for (const [i, { format, shape }] of parts.entries()) {
          const end = at + shape.reduce((n, d) => n * d, WIDTH[format]![1]);
          header[`t${i}`] = { dtype: format, shape, data_offsets: [at, end] };
          at = end;
        }
        const data = Uint8Array.from({ length: at }, (_, i) => Math.imul(seed + i, 0x9e3779b1) >>> 31);
        writeFileSync(path, fileOf(header, data, padding));
        using file = openSafetensors(path);
        for (const [i, { format, shape }] of parts.entries()) {
          using copied = file.tensor(`t${i}`, { engine });
          using mapped = file.tensor(`t${i}`, { engine, map: true });
          expect([mapped.dtype, mapped.shape, mapped.engine.name]).toEqual([copied.dtype, shape, engine]);
          expect(bytesOf(mapped)).toBe(bytesOf(copied));
          const [dtype, width] = WIDTH[format]!;
          const fits = isFloat(dtype) && mapped.size > 0 && file.entries.get(`t${i}`)!.begin % width === 0;
          expect(copied.storage.isMapped).toBe(false);
          expect(mapped.storage.isMapped).toBe(fits);
          expect(file.isMappable(`t${i}`, { engine })).toBe(fits);
        }
      },
    );
    fc.assert(run, { numRuns: 60 });
  });
  test("mapping allocates nothing; the books count it apart and go back", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.path("file"), filled(3));
    using file = openSafetensors(folder.path("file"));
    const before = memoryUsage();
    resetPeakMemory();
    const x = file.tensor("x", { engine, map: true });
    const { storages, bytes, mappedBytes, peakBytes } = memoryUsage();
    expect([storages, bytes, peakBytes]).toEqual([before.storages + 1, before.bytes, before.bytes]);
    expect(mappedBytes).toBe(before.mappedBytes + 16);
    x[Symbol.dispose]();
    expect(memoryUsage()).toEqual({ ...before, peakBytes: before.bytes });
  });
  test("it outlives its file, and is gone with its last handle", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.path("file"), filled(3));
    const file = openSafetensors(folder.path("file"));
    const x = file.tensor("x", { engine, map: true });
    file[Symbol.dispose]();
    const half = x.slice(0, 2) as Tensor<"float32">;
    const { data } = half;
    x[Symbol.dispose]();
    expect([...toFloat64(half)]).toEqual([3, 3]);
    half[Symbol.dispose]();
    expect([data.length, data.buffer.detached]).toEqual([0, true]);
    expect(() => half.data).toThrow(DisposedError);
    expect(() => x.data).toThrow(DisposedError);
  });
  test("writes into it reach neither the file nor another tensor of the same name", () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    writeFileSync(path, filled(3));
    using file = openSafetensors(path);
    using x = file.tensor("x", { engine, map: true });
    using other = file.tensor("x", { engine, map: true });
    using nine = tensor(new Float32Array(4).fill(9), undefined, { engine });
    copyInto(nine, x);
    expect([...toFloat64(x)]).toEqual([9, 9, 9, 9]);
    expect([...toFloat64(other)]).toEqual([3, 3, 3, 3]);
    using later = file.tensor("x", { engine, map: true });
    using copied = file.tensor("x", { engine });
    expect([...toFloat64(later), ...toFloat64(copied)]).toEqual(Array(8).fill(3));
    expect(readFileSync(path)).toEqual(Buffer.from(filled(3)));
  });
  test.each(["renamed over", "deleted"])("a file that is %s is read to the end as it was opened", (what) => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    writeFileSync(path, filled(3));
    using file = openSafetensors(path);
    using early = file.tensor("x", { engine, map: true });
    if (what === "deleted") unlinkSync(path);
    else {
      writeFileSync(folder.path("next"), filled(5));
      renameSync(folder.path("next"), path);
    }
    using late = file.tensor("x", { engine, map: true });
    using copied = file.tensor("x", { engine });
    expect([early.storage.isMapped, late.storage.isMapped]).toEqual([true, true]);
    for (const t of [early, late, copied]) expect([...toFloat64(t)]).toEqual([3, 3, 3, 3]);
  });
  test("a file that was shortened since it was opened is a FormatError, and nothing is left of the try", () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    for (const left of [0, 8, filled(3).length - 16, filled(3).length - 1]) {
      writeFileSync(path, filled(3));
      using file = openSafetensors(path);
      truncateSync(path, left);
      const before = systemHolds(path);
      using tracker = trackLeaks();
      for (const map of [true, false]) expect(() => file.tensor("x", { engine, map })).toThrow(FormatError);
      expect(() => file.tensor("x", { engine, map: true })).toThrow(`has ${left} bytes now`);
      expect(() => file.bytes("x")).toThrow(FormatError);
      tracker.check();
      expect(systemHolds(path)).toEqual(before);
    }
  });
  test("what the system refuses to map is copied after all", () => {
    const bytes = filled(3);
    const refused: [number, number][] = [];
    const source: ByteSource = {
      size: bytes.length,
      read: (at, into) => into.set(bytes.subarray(at, at + into.length)),
      map: (begin, end) => void refused.push([begin, end]),
      close: () => {},
    };
    using file = new SafetensorsFile(source, "f");
    expect(file.isMappable("x", { engine })).toBe(true);
    using x = file.tensor("x", { engine, map: true });
    expect(refused).toEqual([[bytes.length - 16, bytes.length]]);
    expect([x.storage.isMapped, ...toFloat64(x)]).toEqual([false, 3, 3, 3, 3]);
  });
  test("bytes in memory are copied", () => {
    using file = new SafetensorsFile(filled(3), "f");
    expect(file.isMappable("x", { engine })).toBe(false);
    using x = file.tensor("x", { engine, map: true });
    expect(x.storage.isMapped).toBe(false);
  });
  test("a file of more than 4 GiB is opened; its tensors are mapped and copied wherever they lie", () => {
    using folder = temporaryFolder();
    const path = folder.path("large");
    const huge = 2 ** 32 + 4096;
    const header = {
      huge: { dtype: "F32", shape: [huge / 4], data_offsets: [0, huge] },
      x: { dtype: "F32", shape: [4], data_offsets: [huge, huge + 16] },
    };
    const head = fileOf(header, [], toEight(header));
    const descriptor = openSync(path, "w"); // holes take no room on the disk
    writeSync(descriptor, head, 0, head.length, 0);
    writeSync(descriptor, new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer), 0, 16, head.length + huge);
    closeSync(descriptor);
    using file = openSafetensors(path);
    using mapped = file.tensor("x", { engine, map: true });
    using copied = file.tensor("x", { engine });
    expect(mapped.storage.isMapped).toBe(true);
    for (const t of [mapped, copied]) expect([...toFloat64(t)]).toEqual([1, 2, 3, 4]);
    // On "cpu" it would be a copy of 4 GiB.
    expect(() => file.tensor("huge", { engine: "portable", map: true })).toThrow(OutOfMemoryError);
    expect(() => file.bytes("huge")).toThrow(OutOfMemoryError);
  });
  test("200 files opened, mapped, used and disposed leave no mapping and no descriptor", async () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    using y = randn([64, 64], { engine });
    await writeSafetensors(path, { y });
    const before = systemHolds(path);
    for (let i = 0; i < 200; i++) {
      using file = openSafetensors(path);
      using x = file.tensor("y", { engine, map: true }) as Tensor<"float32">;
      matmul(x, x)[Symbol.dispose]();
    }
    expect(systemHolds(path)).toEqual(before);
  });
  test("what nobody disposed goes with the collector", async () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    writeFileSync(path, filled(3));
    const before = systemHolds(path);
    const { storages } = memoryUsage();
    (() => {
      for (let i = 0; i < 200; i++) openSafetensors(path).tensor("x", { engine, map: true });
    })();
    const grown = (): number =>
      Math.max(systemHolds(path).mappings - before.mappings, systemHolds(path).open - before.open);
    for (let i = 0; i < 50 && grown() > 5; i++) {
      Bun.gc(true);
      await Bun.sleep(1);
    }
    expect(grown()).toBeLessThanOrEqual(5); // a conservative stack scan may keep a few
    // What others left before may go now too, so only the books' sense can be told: every mapped storage has 16 bytes here.
    expect(memoryUsage().storages - storages).toBeLessThanOrEqual(5);
    expect(memoryUsage().mappedBytes).toBeLessThanOrEqual(5 * 16);
  });
});
/** Mappings of a file in this process, and open descriptors; nothing off Linux, where the system does not say. */
function systemHolds(path: string): { readonly mappings: number; readonly open: number } {
  if (process.platform !== "linux") return { mappings: 0, open: 0 };
  const maps = readFileSync("/proc/self/maps", "utf8").split("\n");
  return {
    mappings: maps.filter((line) => line.includes(path)).length,
    open: readdirSync("/proc/self/fd").length,
  };
}
describe.each([...engines])("copying from files on %s", (engine) => {
  test("takes no more memory than the tensor, and a buffer's where it converts", async () => {
    using folder = temporaryFolder();
    const path = folder.path("file");
    const size = 3 * 2 ** 18 + 5; // several buffers and a rest
    using x = randn([size], { engine, seed: 1 });
    await writeSafetensors(path, { x });
    using file = openSafetensors(path);
    resetPeakMemory();
    const before = memoryUsage().bytes;
    using same = file.tensor("x", { engine });
    expect(memoryUsage().peakBytes - before).toBe(4 * size);
    expect(bytesOf(same) === bytesOf(x)).toBe(true);
    using narrow = zeros([size], { engine, dtype: "bfloat16" });
    const held = memoryUsage().bytes;
    resetPeakMemory();
    file.copyInto("x", narrow);
    expect(memoryUsage().peakBytes - held).toBe(2 ** 20);
    using wanted = zeros([size], { engine, dtype: "bfloat16" });
    copyInto(x, wanted);
    expect(bytesOf(narrow) === bytesOf(wanted)).toBe(true);
  });
  test("copyInto fills a slice, converts every dtype, and refuses another shape or a view with gaps", () => {
    const ones = { dtype: "U8", shape: [2, 2], data_offsets: [0, 4] };
    using file = new SafetensorsFile(fileOf({ x: ones }, [1, 0, 1, 1]), "f");
    using all = zeros([4, 2], { engine });
    using rows = all.slice(0, 1, 3);
    file.copyInto("x", rows);
    expect([...toFloat64(all)]).toEqual([0, 0, 1, 0, 1, 1, 0, 0]);
    using turned = rows.transpose();
    using other = all.slice(0, 0, 1);
    for (const out of [turned, other, all]) {
      expect(() => file.copyInto("x", out)).toThrow(ShapeError);
      expect(() => file.copyInto("x", out)).toThrow("goes to a contiguous tensor of shape [2, 2]");
    }
    const gone = zeros([2, 2], { engine });
    gone[Symbol.dispose]();
    expect(() => file.copyInto("x", gone)).toThrow(DisposedError);
  });
});
test("an engine with memory of its own gets copies", () => {
  using folder = temporaryFolder();
  writeFileSync(folder.path("file"), filled(3));
  const device = Object.assign(fakeEngine({}, "device"), { wrap: undefined });
  using file = openSafetensors(folder.path("file"));
  expect(file.isMappable("x", { engine: device })).toBe(false);
  using x = file.tensor("x", { engine: device, map: true });
  expect([x.storage.isMapped, ...toFloat64(x)]).toEqual([false, 3, 3, 3, 3]);
  expect(x.engine).toBe(device);
});
test("a file that is not one leaves no descriptor open", () => {
  using folder = temporaryFolder();
  const path = folder.path("bad");
  writeFileSync(path, fileOf({}, [1]));
  const before = systemHolds(path);
  for (let i = 0; i < 20; i++) {
    expect(() => openSafetensors(path)).toThrow(FormatError);
    expect(() => openSafetensors(folder.path("."))).toThrow(FormatError);
  }
  expect(systemHolds(path)).toEqual(before);
});
test("the default engine is mapped for, too", () => {
  using folder = temporaryFolder();
  writeFileSync(folder.path("file"), filled(3));
  using file = openSafetensors(folder.path("file"));
  using x = file.tensor("x", { map: true });
  expect([x.engine, x.storage.isMapped]).toEqual([getEngine(), true]);
});
