import "@heed/engine-cpu";
import {
  cast,
  type DType,
  type Engine,
  getEngine,
  memoryUsage,
  randn,
  resetPeakMemory,
  ShapeError,
  type Tensor,
  toFloat64,
  trackLeaks,
} from "@heed/tensor";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type GroupedQueryAttention,
  HFCheckpoint,
  type JsonObject,
  loadAttention,
  loadTensor,
  type MultiHeadLatentAttention,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { type CheckpointOptions, LLAMA, SMALL, writeCheckpoint, type Written } from "./support/checkpoint.ts";

/** A Llama layer wide enough that products run in several tiles, with a ragged rest. */
const WIDE: JsonObject = {
  ...LLAMA,
  hidden_size: 200,
  num_attention_heads: 10,
  num_key_value_heads: 2,
  head_dim: 24,
};
type Layer = GroupedQueryAttention | MultiHeadLatentAttention;

let root = "";
beforeAll(async () => void (root = await mkdtemp(join(tmpdir(), "heed-mapped-"))));
afterAll(() => rm(root, { recursive: true, force: true }));
const write = (json: JsonObject, o?: CheckpointOptions): Promise<Written> => writeCheckpoint(root, json, o);
const stored =
  (dtype: DType) =>
  (t: Tensor): Tensor =>
    cast(t, dtype);
/** Names of the parameters that are mapped. */
const mappedOf = (layer: Layer): string[] =>
  [...layer.parameters].filter(([, t]) => t.storage.isMapped).map(([name]) => name);
const bytesOf = (layer: Layer): number =>
  [...layer.parameters.values()].reduce((n, { size, dtype }) => n + size * (dtype === "float32" ? 4 : 2), 0);
/** Moves a file's data by one byte, off every alignment but that of bytes: a space more in its header. */
async function misalign(path: string): Promise<void> {
  const old = new Uint8Array(await Bun.file(path).arrayBuffer());
  const length = Number(new DataView(old.buffer).getBigUint64(0, true));
  const moved = new Uint8Array(old.length + 1);
  moved.set(old.subarray(0, 8 + length));
  moved[8 + length] = 0x20;
  moved.set(old.subarray(8 + length), 9 + length);
  new DataView(moved.buffer).setBigUint64(0, BigInt(length + 1), true);
  await Bun.write(path, moved);
}
function expectSameOutputs(a: Layer, b: Layer, hidden: number, engine: Engine): void {
  for (const [B, S] of [
    [1, 1],
    [2, 7],
    [1, 37],
  ] as const) {
    using x = randn([B, S, hidden], { engine, seed: S });
    using one = a.forward(x);
    using two = b.forward(x);
    expect([...toFloat64(one)]).toEqual([...toFloat64(two)]);
  }
}

describe.each(engines)("mapped weights on %s", (name) => {
  const engine = getEngine(name);
  test.each(Object.entries({ ...SMALL, wide: WIDE }))(
    "%s: a mapped layer in bfloat16 and float32 gives the bits of a copied one, and allocates nothing",
    async (_, json) => {
      for (const dtype of ["bfloat16", "float32"] as const) {
        const { folder } = await write(json, { shards: true, change: stored(dtype) });
        using copied = loadAttention(folder, 1, { engine });
        const before = memoryUsage();
        resetPeakMemory();
        using mapped = loadAttention(folder, 1, { engine, map: true });
        expect(memoryUsage()).toMatchObject({ bytes: before.bytes, peakBytes: before.bytes });
        expect(memoryUsage().mappedBytes - before.mappedBytes).toBe(bytesOf(mapped));
        expect(mappedOf(mapped)).toEqual([...mapped.parameters.keys()]);
        expect(mappedOf(copied)).toEqual([]);
        for (const [key, t] of copied.parameters) {
          const same = mapped.parameters.get(key)!;
          expect([same.dtype, [...toFloat64(same)]]).toEqual([t.dtype, [...toFloat64(t)]]);
        }
        expectSameOutputs(mapped, copied, json["hidden_size"] as number, engine);
      }
    },
  );
  test("loading by copies takes the weights' memory and a buffer's more at most, converted or not", async () => {
    const { folder } = await write(WIDE);
    for (const dtype of [undefined, "bfloat16"] as const) {
      const before = memoryUsage().bytes;
      resetPeakMemory();
      using layer = loadAttention(folder, 0, { engine, dtype });
      const { bytes, peakBytes } = memoryUsage();
      expect(bytes - before).toBe(bytesOf(layer));
      const largest = 4 * 240 * 200; // of the stored weights, all smaller than a buffer of 1 MiB
      expect(peakBytes - bytes).toBeLessThanOrEqual(dtype === undefined ? 0 : largest);
    }
  });
  test("a fused weight stays one mapped tensor, which one product serves", async () => {
    const { folder } = await write(SMALL["phi3"]!);
    using layer = loadAttention(folder, 2, { engine, map: true }) as GroupedQueryAttention;
    expect(mappedOf(layer)).toContain("qkv_proj.weight");
    expect(layer.isMerged).toBe(true);
  });
  test("weights that do not lie at a multiple of their element are copied, side by side, and say so", async () => {
    const { folder } = await write(LLAMA, { shards: true, change: stored("bfloat16") });
    for (const file of await readdir(folder)) {
      if (file.startsWith("model-00002")) await misalign(join(folder, file));
    }
    using aligned = loadAttention(folder, 0, { engine, map: true });
    using copied = loadAttention(folder, 1, { engine, map: true }) as GroupedQueryAttention;
    expect([mappedOf(aligned).length, mappedOf(copied).length]).toEqual([4, 0]);
    expect(copied.isMerged).toBe(true);
    using checkpoint = new HFCheckpoint(folder);
    const tail = "self_attn.q_proj.weight";
    const isMappable = (layer: number): boolean =>
      checkpoint
        .file(`model.layers.${layer}.${tail}`)
        .isMappable(`model.layers.${layer}.${tail}`, { engine });
    expect([0, 1, 2].map(isMappable)).toEqual([true, false, true]);
  });
  test("another dtype than the stored one is a copy; the stored one by its name is not", async () => {
    const { folder } = await write(LLAMA, { change: stored("bfloat16") });
    using wide = loadAttention(folder, 0, { engine, map: true, dtype: "float32" });
    using same = loadAttention(folder, 0, { engine, map: true, dtype: "bfloat16" });
    expect([mappedOf(wide).length, mappedOf(same).length]).toEqual([0, 4]);
    const mixed = await write(LLAMA, {
      change: (t, key) => (key.includes("k_proj") ? cast(t, "bfloat16") : t),
    });
    using apart = loadAttention(mixed.folder, 0, { engine, map: true });
    using partly = loadAttention(mixed.folder, 0, { engine, map: true, dtype: "bfloat16" });
    expect(mappedOf(apart)).toHaveLength(4);
    expect([...partly.parameters.values()].map((t) => t.dtype)).toEqual(Array(4).fill("bfloat16"));
    expect(mappedOf(partly)).toEqual([]); // q, k and v side by side, o converted
  });
  test("a layer outlives its checkpoint, and leaves nothing mapped when it is disposed", async () => {
    const { folder } = await write(LLAMA, { shards: true });
    const other = await write(LLAMA);
    using tracker = trackLeaks();
    const copied = loadAttention(other.folder, 1, { engine });
    const checkpoint = new HFCheckpoint(folder);
    const layers = [0, 1, 2].map((i) => loadAttention(checkpoint, i, { engine, map: true }));
    checkpoint[Symbol.dispose]();
    await rm(folder, { recursive: true });
    expectSameOutputs(layers[1]!, copied, 16, engine);
    for (const layer of [copied, ...layers]) layer[Symbol.dispose]();
    tracker.check();
  });
  test("a load that fails half-way leaves nothing mapped", async () => {
    const change = (t: Tensor, key: string): Tensor =>
      key.includes("o_proj") ? t.slice(0, 0, 4).contiguous() : t;
    const { folder } = await write(LLAMA, { change });
    const before = memoryUsage();
    expect(() => loadAttention(folder, 0, { engine, map: true })).toThrow(ShapeError);
    expect(memoryUsage()).toEqual({ ...before, peakBytes: memoryUsage().peakBytes });
  });
  test("gradients through mapped weights are those through copied ones", async () => {
    const { folder } = await write(LLAMA);
    using mapped = loadAttention(folder, 0, { engine, map: true }) as GroupedQueryAttention;
    using copied = loadAttention(folder, 0, { engine }) as GroupedQueryAttention;
    using x = randn([1, 5, 16], { engine, seed: 1 });
    using dOut = randn([1, 5, 16], { engine, seed: 2 });
    const [one, two] = [mapped, copied].map((layer) => layer.vjp(x).backward(dOut).parameters);
    for (const [key, gradient] of one!) {
      const other = toFloat64(two!.get(key)!);
      toFloat64(gradient).forEach((g, i) => expect(Math.abs(g - other[i]!)).toBeLessThan(1e-5));
    }
  });
  test("an engine with memory of its own gets copies, side by side", async () => {
    const device = Object.assign(Object.create(engine) as Engine, { name: "device", wrap: undefined });
    using layer = loadAttention((await write(LLAMA)).folder, 0, { engine: device, map: true });
    expect([mappedOf(layer).length, (layer as GroupedQueryAttention).isMerged]).toEqual([0, true]);
    expect(layer.parameters.get("o_proj.weight")!.engine).toBe(device);
  });
  test("single tensors are mapped too", async () => {
    const { folder } = await write(LLAMA);
    using checkpoint = new HFCheckpoint(folder);
    const key = "model.layers.2.self_attn.o_proj.weight";
    using t = loadTensor(checkpoint, key, { engine, map: true });
    using copied = loadTensor(checkpoint, key, { engine });
    expect([t.storage.isMapped, copied.storage.isMapped]).toEqual([true, false]);
    expect([...toFloat64(t)]).toEqual([...toFloat64(copied)]);
  });
});
