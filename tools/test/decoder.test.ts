import "@heed/engine-cpu";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cast, getEngine, randn, scope, tensor, type Tensor, writeSafetensors } from "@heed/tensor";
import { huggingFaceConfig, saveModel } from "../demo/checkpoint.ts";
import { Decoder, type ModelConfig } from "../demo/model.ts";

const root = join(import.meta.dir, "../..");
const engine = getEngine();
const SMALL: ModelConfig = {
  vocabSize: 256,
  hiddenSize: 24,
  intermediateSize: 40,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 6,
  ropeTheta: 10000,
  normEps: 1e-5,
  context: 64,
};
setDefaultTimeout(60_000); // each test starts processes
let folder = "";
beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), "heed-decoder-"))));
afterAll(() => rm(folder, { recursive: true, force: true }));

/** A decoder whose random weights are large enough that its continuations vary. */
function randomModel(config: ModelConfig, change: (t: Tensor) => Tensor = (t) => t): Decoder {
  const plain = new Decoder(config, engine, { seed: 1 });
  const weights = [...plain.parameters].map(([name, t], i): [string, Tensor] => [
    name,
    change(randn(t.shape, { engine, seed: i, std: 0.4 })),
  ]);
  return new Decoder(config, engine, { weights: new Map(weights) });
}
/** The likeliest continuation, each token from a full pass over all before it. */
function greedy(model: Decoder, prompt: readonly number[], tokens: number, end?: number): number[] {
  const ids = [...prompt];
  const made: number[] = [];
  while (made.length < tokens) {
    const next = scope(() => {
      const logits = model.forward(tensor(Int32Array.from(ids), [1, ids.length], { dtype: "int32", engine }));
      const row = logits.data.slice(-model.config.vocabSize);
      return row.indexOf(Math.max(...row));
    });
    if (next === end) break;
    ids.push(next);
    made.push(next);
  }
  return made;
}
/** The example, run as a user would. */
async function run(...args: string[]): Promise<{ code: number; out: string; error: string }> {
  const command = [process.execPath, "docs/examples/decoder.ts", ...args];
  const child = Bun.spawn(command, { cwd: root, stdout: "pipe", stderr: "pipe" });
  const [out, error] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, error };
}
/** A tokenizer.json of 22 tokens: letters, space and a few merges of them. */
function tokenizerJson(): object {
  const letters = [..."abcdefghijklmno", "Ġ"];
  const merges = ["a b", "ab c", "d e", "f g", "Ġ a", "h i"];
  const tokens = [...letters, ...merges.map((pair) => pair.replace(" ", ""))];
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      vocab: Object.fromEntries(tokens.map((token, i) => [token, i])),
      merges,
    },
  };
}
describe("the example decoder", () => {
  test("continues prompts of different lengths as full passes over each would", async () => {
    const model = randomModel(SMALL);
    await saveModel(model, join(folder, "bytes"));
    const prompts = ["a", "a prompt longer than a page of 16 tokens", "three words here"];
    const { code, out, error } = await run(join(folder, "bytes"), "--tokens", "20", ...prompts);
    const expected = prompts.map((prompt) => {
      const made = greedy(model, [...new TextEncoder().encode(prompt)], 20);
      return `--- ${prompt}|${new TextDecoder().decode(Uint8Array.from(made))}\n`;
    });
    expect(error).toBe("");
    expect(out).toBe(expected.join(""));
    expect(code).toBe(0);
  });
  test("reads tokenizer.json and bfloat16 shards, and ends a sequence at its end token", async () => {
    const config = { ...SMALL, vocabSize: 22 };
    const model = randomModel(config, (t) => cast(cast(t, "bfloat16"), "float32"));
    const place = join(folder, "tokens");
    await mkdir(place);
    const names = [...model.parameters.keys()];
    const shardOf = (name: string): string => `model-${names.indexOf(name) % 2}.safetensors`;
    for (const shard of ["model-0.safetensors", "model-1.safetensors"]) {
      const part = [...model.parameters].filter(([name]) => shardOf(name) === shard);
      await writeSafetensors(
        join(place, shard),
        new Map(part.map(([name, t]): [string, Tensor] => [name, cast(t, "bfloat16")])),
      );
    }
    const weight_map = Object.fromEntries(names.map((name) => [name, shardOf(name)]));
    await Bun.write(join(place, "model.safetensors.index.json"), JSON.stringify({ weight_map }));
    await Bun.write(join(place, "tokenizer.json"), JSON.stringify(tokenizerJson()));
    // "abc" is token 17, the merge of "ab", 16, and "c"; "ab" is merged before " a", so " ab" is 15 and 16.
    const prompts = new Map<string, number[]>([
      ["abc", [17]],
      ["abc de", [17, 15, 18]],
      ["hi ab c", [21, 15, 16, 15, 2]],
    ]);
    const end = greedy(model, [17], 4)[3]!;
    await Bun.write(
      join(place, "config.json"),
      JSON.stringify({ ...huggingFaceConfig(config), torch_dtype: "bfloat16", eos_token_id: [end] }),
    );
    const { code, out, error } = await run(
      place,
      "--tokens",
      "12",
      "--temperature",
      "1e-9",
      ...prompts.keys(),
    );
    expect(error).toBe("");
    const vocabulary = Object.keys((tokenizerJson() as { model: { vocab: object } }).model.vocab);
    const expected = [...prompts].map(([prompt, ids]) => {
      const made = greedy(model, ids, 12, end).map((id) => vocabulary[id]!.replace("Ġ", " "));
      return `--- ${prompt}|${made.join("")}\n`;
    });
    expect(out).toBe(expected.join(""));
    expect(code).toBe(0);
  });
  test("says in a line what it cannot use", async () => {
    const place = join(folder, "wrong");
    await saveModel(randomModel({ ...SMALL, vocabSize: 20 }), place);
    const cases: [string[], string][] = [
      [[], "which folder?"],
      [[join(folder, "nowhere")], "ENOENT"],
      [[place], "no tokenizer.json, and its 20 tokens are not the 256 bytes"],
      [[place, "--tokens", "many"], "--tokens takes a number"],
      [[place, "--colour", "red"], "--colour"],
    ];
    const runs = await Promise.all(cases.map(([args]) => run(...args)));
    for (const [i, { code, out, error }] of runs.entries()) {
      expect(error).toContain(cases[i]![1]);
      expect([out, code, error.trim().split("\n").length]).toEqual(["", 2, 1]);
    }
    await Bun.write(join(place, "tokenizer.json"), "{");
    const broken = await run(place);
    expect([broken.code, broken.error.trim().split("\n").length]).toEqual([2, 1]);
    const gemma = { ...huggingFaceConfig(SMALL), model_type: "gemma2" };
    await Bun.write(join(place, "config.json"), JSON.stringify(gemma));
    expect((await run(place)).error).toContain('model_type "gemma2" is not one of');
  });
});
