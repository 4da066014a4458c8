import "@heed/engine-cpu";
import {
  cast,
  DTypeError,
  FormatError,
  getEngine,
  memoryUsage,
  randn,
  scope,
  ShapeError,
  type Tensor,
  toFloat64,
  writeSafetensors,
  zeros,
} from "@heed/tensor";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type GroupedQueryAttention,
  HFCheckpoint,
  type JsonObject,
  loadAttention,
  loadTensor,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { type CheckpointOptions, LLAMA, SMALL, writeCheckpoint, type Written } from "./support/checkpoint.ts";

let root = "";
beforeAll(async () => void (root = await mkdtemp(join(tmpdir(), "heed-hf-"))));
afterAll(() => rm(root, { recursive: true, force: true }));
const write = (json: JsonObject, o?: CheckpointOptions): Promise<Written> => writeCheckpoint(root, json, o);
const valuesOf = (t: Tensor): number[] => [...toFloat64(t)];

describe.each(engines)("loadAttention on %s", (name) => {
  const engine = getEngine(name);
  test.each(Object.entries(SMALL))("%s: every weight and the output, bit for bit", async (_, json) => {
    const { folder, layers } = await write(json, { shards: true });
    for (const [i, wanted] of layers.entries()) {
      using loaded = loadAttention(folder, i, { engine });
      expect(loaded.config).toEqual(wanted.config as never);
      expect(loaded.config.layerIndex).toBe(i);
      expect([...loaded.parameters.keys()]).toEqual([...wanted.parameters.keys()]);
      for (const [key, t] of wanted.parameters)
        expect(valuesOf(loaded.parameters.get(key)!)).toEqual(valuesOf(t));
      using x = randn([1, 5, 16], { engine, seed: 9 });
      using again = scope(() => {
        const copies = [...wanted.parameters].map(([key, t]): [string, Tensor] => [
          key,
          cast(zeros(t.shape, { engine }), "float32"),
        ]);
        for (const [key, copy] of copies)
          (copy.data as Float32Array).set(toFloat64(wanted.parameters.get(key)!));
        const Layer = wanted.constructor as typeof GroupedQueryAttention;
        return new Layer(wanted.attributes() as never, new Map(copies));
      });
      using got = loaded.forward(x);
      using same = again.forward(x);
      expect(valuesOf(got)).toEqual(valuesOf(same));
    }
  });
  test("weights of maps with one input are laid side by side", async () => {
    const { folder } = await write(SMALL["qwen2"]!);
    using loaded = loadAttention(folder, 1, { engine }) as GroupedQueryAttention;
    expect(loaded.isMerged).toBe(true);
    using latent = loadAttention((await write(SMALL["deepseek_v3"]!)).folder, 1, { engine });
    const storageOf = (key: string): unknown => latent.parameters.get(key)!.storage;
    expect(storageOf("q_a_proj.weight")).toBe(storageOf("kv_a_proj_with_mqa.weight"));
  });
  test("weights come as stored, or in the dtype that is asked for", async () => {
    const { folder, layers } = await write(LLAMA, { change: (t) => cast(t, "bfloat16") });
    using stored = loadAttention(folder, 0, { engine });
    using wide = loadAttention(folder, 0, { engine, dtype: "float32" });
    const rounded = valuesOf(cast(layers[0]!.parameters.get("q_proj.weight")!, "bfloat16"));
    for (const [loaded, dtype] of [
      [stored, "bfloat16"],
      [wide, "float32"],
    ] as const) {
      const t = loaded.parameters.get("q_proj.weight")!;
      expect(t.dtype).toBe(dtype);
      expect(valuesOf(t)).toEqual(rounded);
    }
    const mixed = await write(LLAMA, {
      change: (t, key) => (key.includes("k_proj") ? cast(t, "bfloat16") : t),
    });
    using apart = loadAttention(mixed.folder, 0, { engine }) as GroupedQueryAttention;
    expect([...apart.parameters.values()].map((t) => t.dtype)).toEqual([
      "float32",
      "bfloat16",
      "float32",
      "float32",
    ]);
    expect(apart.isMerged).toBe(false);
    using narrow = loadAttention((await write(LLAMA)).folder, 0, { engine, dtype: "bfloat16" });
    expect(valuesOf(narrow.parameters.get("o_proj.weight")!)).toEqual(
      valuesOf(cast(layers[0]!.parameters.get("o_proj.weight")!, "bfloat16")),
    );
  });
  test("a disposed layer leaves nothing behind", async () => {
    const { folder } = await write(LLAMA);
    const before = memoryUsage().bytes;
    loadAttention(folder, 0, { engine })[Symbol.dispose]();
    expect(memoryUsage().bytes).toBe(before);
    expect(() => loadAttention(folder, 3, { engine })).toThrow("from 0 to 2");
    expect(memoryUsage().bytes).toBe(before);
    await rm(join(folder, "model.safetensors")); // what other tests left behind may be collected meanwhile
    const afterwards = memoryUsage().bytes;
    expect(() => loadAttention(folder, 0, { engine })).toThrow("neither model.safetensors nor");
    expect(memoryUsage().bytes).toBe(afterwards);
  });
});
describe("checkpoints", () => {
  const engine = "portable";
  test("a shard that holds no weight of the layer is not opened", async () => {
    const { folder } = await write(LLAMA, { shards: true });
    await unlink(join(folder, "model-00001-of-00003.safetensors"));
    await Bun.write(join(folder, "model-00003-of-00003.safetensors"), "garbage");
    loadAttention(folder, 1, { engine })[Symbol.dispose]();
    expect(() => loadAttention(folder, 2, { engine })).toThrow(FormatError);
    expect(() => loadAttention(folder, 0, { engine })).toThrow("ENOENT");
  });
  test.each(["", "language_model.model.", "model.language_model."])(
    'weights are found under the prefix "%s"',
    async (prefix) => {
      const { folder } = await write(LLAMA, { prefix });
      loadAttention(folder, 2, { engine })[Symbol.dispose]();
    },
  );
  test("the text model within a multimodal one is found", async () => {
    const outer = { model_type: "gemma3", text_config: SMALL["gemma3_text"]! };
    const { folder } = await write(SMALL["gemma3_text"]!, { outer, prefix: "language_model.model." });
    loadAttention(folder, 0, { engine })[Symbol.dispose]();
  });
  test("one open checkpoint serves many layers, and its tensors one by one", async () => {
    const { folder, layers } = await write(LLAMA, { shards: true });
    const checkpoint = new HFCheckpoint(folder);
    loadAttention(checkpoint, 0, { engine })[Symbol.dispose]();
    using t = loadTensor(checkpoint, "model.layers.2.self_attn.q_proj.weight", { engine, shape: [16, 16] });
    expect(valuesOf(t)).toEqual(valuesOf(layers[2]!.parameters.get("q_proj.weight")!));
    checkpoint[Symbol.dispose]();
  });
  test("a weight that is missing, extra, misshapen or quantised is an error that names it", async () => {
    const cases: [(t: Tensor, name: string) => Tensor, new (m: string) => Error, string][] = [
      [(t) => t.slice(0, 0, 4).contiguous(), ShapeError, 'self_attn.q_proj.weight" must be [16, 16]'],
      [(t) => cast(t, "uint8"), DTypeError, 'self_attn.q_proj.weight" is stored as U8'],
    ];
    for (const [change, Kind, words] of cases) {
      const { folder } = await write(LLAMA, { change });
      expect(() => loadAttention(folder, 0, { engine })).toThrow(Kind);
      expect(() => loadAttention(folder, 0, { engine })).toThrow(words);
    }
    const biased = await write({ ...LLAMA, attention_bias: true }, { outer: LLAMA });
    expect(() => loadAttention(biased.folder, 0, { engine })).toThrow(
      '_proj.bias" is not a weight that config.json calls for',
    );
    const plain = await write(LLAMA, { outer: { ...LLAMA, attention_bias: true } });
    expect(() => loadAttention(plain.folder, 0, { engine })).toThrow(
      'no tensor "model.layers.0.self_attn.q_proj.bias"',
    );
    const elsewhere = await write(LLAMA, { prefix: "decoder." });
    expect(() => loadAttention(elsewhere.folder, 0, { engine })).toThrow("no attention weights of layer 0");
  });
  test("an index that leads out of the folder or lies about a shard is an error", async () => {
    const { folder } = await write(LLAMA, { shards: true });
    const index = join(folder, "model.safetensors.index.json");
    const { weight_map } = (await Bun.file(index).json()) as { weight_map: Record<string, string> };
    const q = "model.layers.0.self_attn.q_proj.weight";
    const bad: [unknown, string][] = [
      [{ weight_map: { [q]: "../model.safetensors" } }, "not the name of a safetensors file"],
      [{ weight_map: { [q]: "..\\model.safetensors" } }, "not the name of a safetensors file"],
      [{ weight_map: { [q]: "model.bin" } }, "not the name of a safetensors file"],
      [{ weight_map: { [q]: 7 } }, "not the name of a safetensors file"],
      [{ weight_map: [] }, "has no object weight_map"],
      [{}, "has no object weight_map"],
      [[], "is not a JSON object"],
      [
        { weight_map: { ...weight_map, [q]: "model-00002-of-00003.safetensors" } },
        "has no tensor of that name",
      ],
    ];
    for (const [json, words] of bad) {
      await Bun.write(index, JSON.stringify(json));
      expect(() => loadAttention(folder, 0, { engine })).toThrow(FormatError);
      expect(() => loadAttention(folder, 0, { engine })).toThrow(words);
    }
  });
  test("a config that is missing or not a JSON object is an error", async () => {
    const { folder } = await write(LLAMA);
    for (const text of ["", "{", "[1]", "3"]) {
      await Bun.write(join(folder, "config.json"), text);
      expect(() => new HFCheckpoint(folder)).toThrow(FormatError);
    }
    await unlink(join(folder, "config.json"));
    expect(() => new HFCheckpoint(folder)).toThrow("ENOENT");
    expect(() => new HFCheckpoint(join(root, "nowhere"))).toThrow("ENOENT");
  });
  test("tables of rotations in old checkpoints are passed over", async () => {
    const { folder, layers } = await write(LLAMA);
    const tensors = new Map(
      [...layers[0]!.parameters].map(([key, t]) => [`model.layers.0.self_attn.${key}`, t] as const),
    );
    const table = zeros([2], { engine });
    const with_ = new Map([
      ...tensors,
      ["model.layers.0.self_attn.rotary_emb.inv_freq", table as Tensor] as const,
    ]);
    await writeSafetensors(join(folder, "model.safetensors"), with_);
    loadAttention(folder, 0, { engine })[Symbol.dispose]();
  });
});
