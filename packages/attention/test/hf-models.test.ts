/** Whole checkpoints of published models, by their own config fields, against the outputs of their published PyTorch code. */
import "@heed/engine-cpu";
import { getEngine, scope, type Tensor, toFloat64, writeSafetensors } from "@heed/tensor";
import {
  assertClose,
  conformanceTolerance,
  findVectors,
  loadModelVectors,
  type ModelCase,
} from "@heed/testkit";
import { afterAll, beforeAll, describe, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type JsonObject, loadAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

/** Fields that the vectors have under names of their own; the family says them. */
const OWN_NAMES = ["rope_interleaved", "qk_norm", "rms_norm_unit_offset", "attention_sinks"];

/** The config.json of the model's family for a case of one layer; undefined for weights that no Hugging Face family has. */
function configOf({ name, model, config }: ModelCase): JsonObject | undefined {
  const fields = Object.fromEntries(Object.entries(config).filter(([field]) => !OWN_NAMES.includes(field)));
  const slides = (fields["sliding_window"] ?? null) !== null;
  const layer_types = [slides ? "sliding_attention" : "full_attention"];
  switch (model) {
    case "gemma":
      return {
        ...fields,
        model_type: name.startsWith("gemma2") ? "gemma2" : "gemma3_text",
        layer_types,
        query_pre_attn_scalar: fields["query_pre_attn_scalar"] ?? fields["head_dim"],
      };
    case "gpt_oss":
      return { ...fields, model_type: "gpt_oss", layer_types };
    case "deepseek_v3":
      return { ...fields, model_type: "deepseek_v3" };
    default:
      return undefined; // Llama in Meta's own layout, which pairs components otherwise
  }
}
const vectors = findVectors(import.meta.dir);
const set = vectors === undefined ? undefined : loadModelVectors(vectors);
if (set === undefined) test.skip("model vectors: no shared/conformance beside the checkout", () => {});
let folder = "";
beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), "heed-hf-models-"))));
afterAll(() => rm(folder, { recursive: true, force: true }));

describe.each(engines)("checkpoints of published models on %s", (engineName) => {
  const engine = getEngine(engineName);
  const load = (key: string): Tensor<"float32"> =>
    upload(set!.values(key), set!.tensor(key).shape, "float32", engine);
  for (const model of set?.cases ?? []) {
    const config = configOf(model);
    if (config === undefined) continue;
    test(`${model.name}: loaded and run`, async () => {
      const { weights, input, output } = model.tensors as Record<string, Record<string, string>>;
      const named = Object.entries(weights!).map(([name, key]): [string, Tensor] => [
        `model.layers.0.self_attn.${name}`,
        load(key),
      ]);
      await Bun.write(join(folder, "config.json"), JSON.stringify({ ...config, num_hidden_layers: 1 }));
      await writeSafetensors(join(folder, "model.safetensors"), new Map(named));
      scope(() => {
        const found = loadAttention(folder, 0, { engine }).forward(load(input!["input"]!));
        const key = output!["output"]!;
        assertClose(toFloat64(found), set!.values(key), {
          rel: conformanceTolerance("float32", "model"),
          name: key,
          shape: found.shape,
        });
      });
    });
  }
});
