import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type Engine, openSafetensors, writeSafetensors } from "@heed/tensor";
import { Decoder, type ModelConfig } from "./model.ts";

/** config.json as Hugging Face writes it for LlamaForCausalLM; the vocabulary is the 256 bytes. */
export function huggingFaceConfig(config: ModelConfig): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    max_position_embeddings: config.context,
    rope_theta: config.ropeTheta,
    rms_norm_eps: config.normEps,
    hidden_act: "silu",
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: true,
    initializer_range: 0.02,
    torch_dtype: "float32",
    bos_token_id: null,
    eos_token_id: null,
    use_cache: true,
  };
}
/** Writes model.safetensors and config.json to a folder; each is whole or not there. */
export async function saveModel(model: Decoder, folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeSafetensors(join(folder, "model.safetensors"), model.parameters, { format: "pt" });
  await Bun.write(
    join(folder, "config.json"),
    `${JSON.stringify(huggingFaceConfig(model.config), null, 2)}\n`,
  );
}
/** The model of a folder that {@link saveModel} wrote. */
export function loadModel(folder: string, config: ModelConfig, engine: Engine): Decoder {
  using file = openSafetensors(join(folder, "model.safetensors"));
  return new Decoder(config, engine, {
    weights: new Map([...file.entries.keys()].map((name) => [name, file.tensor(name, { engine })])),
  });
}
/** Whether the saved weights are, bit for bit, those of the model. */
export async function isBitExact(model: Decoder, folder: string): Promise<boolean> {
  using file = openSafetensors(join(folder, "model.safetensors"));
  if (file.entries.size !== model.parameters.size) return false;
  for (const [name, t] of model.parameters) {
    const values = await t.read();
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    if (Buffer.compare(bytes, file.bytes(name)) !== 0) return false;
  }
  return true;
}
