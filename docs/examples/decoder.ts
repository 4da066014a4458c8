// Text from a Llama-family checkpoint (llama, mistral, qwen2, qwen3) in a Hugging Face folder. Prompts of different lengths are
// prefilled together and then decoded together, through one paged cache; those that end leave the batch.
//   bun docs/examples/decoder.ts FOLDER [--tokens N] [--temperature T] [--engine NAME] [PROMPT ...]
// `bun run demo` leaves such a folder in out/demo.
import "./engine.ts";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  type GroupedQueryAttention,
  HFCheckpoint,
  loadAttention,
  loadTensor,
  RMSNorm,
} from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import {
  add,
  type BlockTableReader,
  cast,
  type Engine,
  gather,
  getEngine,
  linear,
  mul,
  scope,
  silu,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { Tokenizer } from "@huggingface/tokenizers";

type F = Tensor<"float32">;
interface Block {
  readonly inputNorm: RMSNorm;
  readonly attention: GroupedQueryAttention;
  readonly outputNorm: RMSNorm;
  readonly gate: Tensor; // [intermediate, hidden]
  readonly up: Tensor; // [intermediate, hidden]
  readonly down: Tensor; // [hidden, intermediate]
}
/** A folder, prompt or option that cannot be used. */
class UsageError extends Error {}

const FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]; // their blocks differ in attention alone

/** A decoder with the weights of a checkpoint in the dtype they are stored in; activations are float32. */
class Decoder {
  readonly engine: Engine;
  readonly vocabSize: number;
  readonly #embedding: Tensor; // [V, hidden]
  readonly #blocks: readonly Block[];
  readonly #norm: RMSNorm;
  readonly #head: Tensor; // [V, hidden]

  constructor(checkpoint: HFCheckpoint, engine: Engine) {
    const { config } = checkpoint;
    if (!FAMILIES.includes(String(config["model_type"])))
      throw new UsageError(`model_type "${config["model_type"]}" is not one of ${FAMILIES.join(", ")}`);
    if ((config["hidden_act"] ?? "silu") !== "silu")
      throw new UsageError(`hidden_act "${config["hidden_act"]}" is not silu`);
    const layers = Number(config["num_hidden_layers"]);
    if (!(layers >= 1))
      throw new UsageError(`num_hidden_layers ${config["num_hidden_layers"]} is not a count`);
    const load = (name: string): Tensor => loadTensor(checkpoint, name, { engine });
    const eps = Number(config["rms_norm_eps"] ?? 1e-6);
    const norm = (name: string): RMSNorm => {
      const weight = load(`${name}.weight`);
      return new RMSNorm({ shape: weight.shape, eps }, { weight });
    };
    this.engine = engine;
    this.#embedding = load("model.embed_tokens.weight");
    this.vocabSize = this.#embedding.shape[0]!;
    this.#norm = norm("model.norm");
    this.#head = checkpoint.has("lm_head.weight") ? load("lm_head.weight") : this.#embedding;
    this.#blocks = Array.from({ length: layers }, (_, layer) => {
      const at = `model.layers.${layer}`;
      return {
        inputNorm: norm(`${at}.input_layernorm`),
        attention: loadAttention(checkpoint, layer, { engine }) as GroupedQueryAttention,
        outputNorm: norm(`${at}.post_attention_layernorm`),
        gate: load(`${at}.mlp.gate_proj.weight`),
        up: load(`${at}.mlp.up_proj.weight`),
        down: load(`${at}.mlp.down_proj.weight`),
      };
    });
  }
  /** An empty cache with room for sequences of the given lengths. */
  cache(lengths: readonly number[]): KvCache {
    const { numKvHeads, headDim } = this.#blocks[0]!.attention.config;
    const [layers, pageSize, { engine }] = [this.#blocks.length, 16, this];
    const maxPages = lengths.reduce((n, length) => n + Math.ceil(length / pageSize), 0);
    return new KvCache({ layers, numKvHeads, headDim, pageSize, maxPages, engine });
  }
  /** Logits [rows.length, V] of some of a step's T tokens, whose ids are given one sequence after the other. */
  forward(ids: readonly number[], rows: readonly number[], cache: BlockTableReader): F {
    const int32 = (values: readonly number[]): Tensor<"int32"> =>
      tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine: this.engine });
    return scope(() => {
      let x = cast(gather(this.#embedding, int32(ids)), "float32"); // [T, hidden]
      for (const b of this.#blocks) {
        x = add(x, b.attention.forward(b.inputNorm.forward(x), { cache }));
        const y = b.outputNorm.forward(x);
        x = add(x, linear(mul(silu(linear(y, b.gate)), linear(y, b.up)), b.down));
      }
      return linear(this.#norm.forward(gather(x, int32(rows))), this.#head);
    });
  }
}
/** What turns text into token ids and back. */
interface Text {
  encode(text: string): number[];
  decode(ids: number[]): string;
}
/** The folder's tokenizer.json; without one, tokens are bytes. */
function textOf(folder: string, vocabSize: number): Text {
  const read = (name: string): object => JSON.parse(readFileSync(join(folder, name), "utf8"));
  if (existsSync(join(folder, "tokenizer.json"))) {
    const config = existsSync(join(folder, "tokenizer_config.json")) ? read("tokenizer_config.json") : {};
    const tokenizer = new Tokenizer(read("tokenizer.json"), config);
    return {
      encode: (text) => tokenizer.encode(text).ids,
      decode: (ids) => tokenizer.decode(ids, { skip_special_tokens: true }),
    };
  }
  if (vocabSize !== 256)
    throw new UsageError(
      `${folder} has no tokenizer.json, and its ${vocabSize} tokens are not the 256 bytes`,
    );
  return {
    encode: (text) => [...new TextEncoder().encode(text)],
    decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids)),
  };
}
/** The likeliest token, or at a temperature a draw from softmax(logits / temperature). */
function pick(logits: Float32Array, temperature: number): number {
  const best = logits.reduce((at, x, i) => (x > logits[at]! ? i : at), 0);
  if (temperature === 0) return best;
  const weights = Float64Array.from(logits, (x) => Math.exp((x - logits[best]!) / temperature));
  let left = Math.random() * weights.reduce((a, b) => a + b, 0);
  const drawn = weights.findIndex((w) => (left -= w) < 0);
  return drawn < 0 ? best : drawn;
}
type Choice = { readonly tokens: number; readonly temperature: number; readonly ends: ReadonlySet<number> };
/** Continuations of all prompts: one step for the prompts together, then one for each token of all that go on. */
async function generate(model: Decoder, prompts: readonly number[][], o: Choice): Promise<number[][]> {
  const V = model.vocabSize;
  using cache = model.cache(prompts.map((ids) => ids.length + o.tokens));
  const all = prompts.map((ids) => ({ sequence: cache.open(), next: ids, made: [] as number[] }));
  let active = all;
  while (active.length > 0) {
    using step = cache.reserve(active.map(({ sequence, next }) => ({ sequence, tokens: next.length })));
    const ids = active.flatMap(({ next }) => next);
    let end = 0;
    const lastRows = active.map(({ next }) => (end += next.length) - 1);
    using logits = model.forward(ids, lastRows, step);
    const rows = await logits.read();
    step.commit(ids);
    for (const [i, one] of active.entries()) {
      const token = pick(rows.subarray(i * V, (i + 1) * V), o.temperature);
      one.next = [token];
      if (!o.ends.has(token)) one.made.push(token);
      if (o.ends.has(token) || one.made.length === o.tokens) one.sequence.release();
    }
    active = active.filter(({ sequence }) => !sequence.released);
  }
  return all.map(({ made }) => made);
}
async function main(): Promise<void> {
  const text = { type: "string" } as const;
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { tokens: text, temperature: text, engine: text }, // engine.ts reads the last
  });
  const [folder, ...given] = positionals;
  const [tokens, temperature] = [Number(values.tokens ?? 64), Number(values.temperature ?? 0)];
  if (folder === undefined) throw new UsageError("which folder? `bun run demo` leaves one in out/demo");
  if (!Number.isSafeInteger(tokens) || tokens < 1) throw new UsageError("--tokens takes a number of tokens");
  if (!(temperature >= 0)) throw new UsageError("--temperature takes a number of at least 0");
  const prompts = given.length > 0 ? given : ["export function ", "The "];
  using checkpoint = new HFCheckpoint(folder);
  const model = new Decoder(checkpoint, getEngine());
  const words = textOf(folder, model.vocabSize);
  const ids = prompts.map((prompt) => words.encode(prompt));
  if (ids.some((list) => list.length === 0)) throw new UsageError("a prompt needs at least one token");
  const ends = new Set([checkpoint.config["eos_token_id"] ?? []].flat().map(Number));
  const made = await generate(model, ids, { tokens, temperature, ends });
  made.forEach((list, i) => console.log(`--- ${prompts[i]}|${words.decode(list)}`));
}
if (import.meta.main) {
  await main().catch((error: unknown) => {
    const isForUser = error instanceof UsageError || error instanceof SyntaxError;
    if (!isForUser && !(error instanceof Error && "code" in error)) throw error;
    console.error(error.message);
    process.exitCode = 2;
  });
}
