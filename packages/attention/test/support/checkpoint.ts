import { randn, scope, type Tensor, writeSafetensors } from "@heed/tensor";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import {
  attentionConfigFromHF,
  GroupedQueryAttention,
  type JsonObject,
  MultiHeadLatentAttention,
} from "../../src/index.ts";

/** A config of three small layers. */
export const LLAMA = {
  model_type: "llama",
  hidden_size: 16,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  num_hidden_layers: 3,
};
/** One of each family's shape. */
export const SMALL: Readonly<Record<string, JsonObject>> = {
  llama: LLAMA,
  qwen2: { ...LLAMA, model_type: "qwen2" },
  qwen3: { ...LLAMA, model_type: "qwen3", head_dim: 6 },
  gemma3_text: { ...LLAMA, model_type: "gemma3_text", head_dim: 8, sliding_window: 2 },
  gpt_oss: { ...LLAMA, model_type: "gpt_oss", head_dim: 8, sliding_window: 2 },
  phi3: { ...LLAMA, model_type: "phi3" },
  deepseek_v3: {
    ...LLAMA,
    num_key_value_heads: 4,
    model_type: "deepseek_v3",
    q_lora_rank: 6,
    kv_lora_rank: 8,
    qk_nope_head_dim: 4,
    qk_rope_head_dim: 2,
    v_head_dim: 3,
  },
};
let folders = 0;
/** A layer with random parameters, norms and biases included, in the config's form. */
export function randomLayer(
  json: JsonObject,
  layer: number,
): GroupedQueryAttention | MultiHeadLatentAttention {
  const made = attentionConfigFromHF(json, layer);
  const Layer = made.operation === "GroupedQueryAttention" ? GroupedQueryAttention : MultiHeadLatentAttention;
  return scope(() => {
    const shapes = [...Layer.create({ ...made.options, engine: "portable" } as never).parameters];
    const parameters = shapes.map(([name, t], i): [string, Tensor] => [
      name,
      randn(t.shape, { engine: "portable", seed: 100 * layer + i, std: 0.3 }),
    ]);
    return new Layer(made.options as never, new Map(parameters));
  });
}
/** A checkpoint and the layers whose weights are in it. */
export interface Written {
  readonly folder: string;
  readonly layers: readonly (GroupedQueryAttention | MultiHeadLatentAttention)[];
}
/** Options of {@link writeCheckpoint}. */
export interface CheckpointOptions {
  /** What names start with. Default "model.". */
  readonly prefix?: string;
  /** A file for each layer, and an index. Default one file. */
  readonly shards?: boolean;
  /** What is stored in place of a weight. */
  readonly change?: (t: Tensor, name: string) => Tensor;
  /** What config.json holds, if not the layers' config. */
  readonly outer?: JsonObject;
}
/** Writes a checkpoint of all layers below `root`: one file, or a shard for each layer beside an index. */
export async function writeCheckpoint(
  root: string,
  json: JsonObject,
  o: CheckpointOptions = {},
): Promise<Written> {
  const folder = join(root, String(folders++));
  await mkdir(folder);
  await Bun.write(join(folder, "config.json"), JSON.stringify(o.outer ?? json));
  const layers = Array.from({ length: 3 }, (_, i) => randomLayer(json, i));
  const places: Record<string, string> = {};
  const named = layers.map(({ parameters }, i) =>
    [...parameters].map(([name, t]): [string, Tensor] => {
      const full = `${o.prefix ?? "model."}layers.${i}.self_attn.${name}`;
      places[full] = `model-0000${i + 1}-of-00003.safetensors`;
      return [full, o.change?.(t, full) ?? t];
    }),
  );
  if (o.shards !== true) {
    await writeSafetensors(join(folder, "model.safetensors"), new Map(named.flat()));
    return { folder, layers };
  }
  for (const shard of named) await writeSafetensors(join(folder, places[shard[0]![0]]!), new Map(shard));
  await Bun.write(
    join(folder, "model.safetensors.index.json"),
    JSON.stringify({ metadata: {}, weight_map: places }),
  );
  return { folder, layers };
}
