// The main job: trains a small decoder on a text, continues a prompt through the paged cache, and leaves pictures and the model.
import "@heed/engine-cpu";
import "@heed/engine-cuda";
import { join } from "node:path";
import { type Engine, getEngine, HeedError, scope, tensor } from "@heed/tensor";
import { isBitExact, saveModel } from "./checkpoint.ts";
import { generate } from "./generate.ts";
import { DEMO_CONFIG, Decoder, SMALL_CONFIG } from "./model.ts";
import { type DemoOptions, parseOptions, usage, UsageError } from "./options.ts";
import { Progress } from "./progress.ts";
import { attentionMaps, type HeadMap, lossChart } from "./svg.ts";
import { type Corpus, loadCorpus, orderZeroEntropy } from "./text.ts";
import { evaluate, train } from "./train.ts";

const PROMPT = "export function ";
/** Characters on the maps: more would be too small to read. */
const MAP_LENGTH = 28;

/** Attention probabilities of every head on the first characters of a text. */
async function headMaps(model: Decoder, text: Uint8Array, engine: Engine): Promise<HeadMap[]> {
  const n = text.length;
  const scores = scope(() => {
    const tokens = tensor(Int32Array.from(text), [1, n], { dtype: "int32", engine });
    return model.attentionInputs(tokens).map(({ layer, x }) => layer.scores(x));
  });
  const maps: HeadMap[] = [];
  for (const [layer, s] of scores.entries()) {
    const values = (await s.read()) as Float32Array;
    s[Symbol.dispose]();
    for (let head = 0; head < model.config.numHeads; head++) {
      maps.push({ layer, head, probabilities: values.subarray(head * n * n, (head + 1) * n * n) });
    }
  }
  return maps;
}
function printable(byte: number): string {
  return byte === 10 || (byte >= 32 && byte < 127) ? String.fromCharCode(byte) : "·";
}
async function continueText(
  model: Decoder,
  engine: Engine,
  corpus: Corpus,
  seed: number,
): Promise<Uint8Array> {
  const own = corpus.source.startsWith("the README");
  const prompt = own ? new TextEncoder().encode(PROMPT) : corpus.heldOut.slice(0, 24);
  console.log("\nContinuing a prompt through the paged cache:\n");
  process.stdout.write([...prompt].map(printable).join(""));
  const { bytes, tokensPerSecond, cacheDifference } = await generate(model, engine, {
    prompt,
    tokens: 320,
    temperature: 0.7,
    seed,
    emit: (byte) => process.stdout.write(printable(byte)),
  });
  console.log(
    `\n\nDecode: ${tokensPerSecond.toFixed(0)} tokens/s. Largest difference from a full forward pass: ${cacheDifference.toExponential(1)}`,
  );
  return bytes;
}
async function report(
  model: Decoder,
  engine: Engine,
  corpus: Corpus,
  losses: readonly number[],
  options: DemoOptions,
): Promise<void> {
  const heldOut = await evaluate(model, corpus.heldOut, engine);
  const entropy = orderZeroEntropy(corpus.heldOut);
  console.log(
    `\nHeld-out loss: ${heldOut.toFixed(3)} bits per byte; order-0 entropy of the same text: ${entropy.toFixed(3)}; gained ${(entropy - heldOut).toFixed(3)}`,
  );
  const text = await continueText(model, engine, corpus, options.seed);
  const levels = [
    { label: "order-0 entropy", value: entropy, colour: "#b5367a" },
    { label: "held out, at the end", value: heldOut, colour: "#e07b39" },
  ];
  await Bun.write(join(options.out, "loss.svg"), lossChart(losses, levels));
  const shown = text.subarray(0, MAP_LENGTH);
  await Bun.write(
    join(options.out, "attention.svg"),
    attentionMaps(await headMaps(model, shown, engine), [...shown].map(printable)),
  );
}
async function main(options: DemoOptions): Promise<void> {
  const corpus = await loadCorpus(options.text);
  const engine = getEngine(options.engine);
  const began = performance.now();
  const model = new Decoder(options.size === "small" ? SMALL_CONFIG : DEMO_CONFIG, engine, {
    seed: options.seed,
  });
  const count = [...model.parameters.values()].reduce((n, t) => n + t.size, 0);
  console.log(`Engine ${engine.name}: ${engine.description}`);
  console.log(
    `Learning ${corpus.source}: ${corpus.train.length} bytes, ${corpus.heldOut.length} held out; ${(count / 1e6).toFixed(2)} million parameters`,
  );

  const interrupted = new AbortController();
  process.once("SIGINT", () => interrupted.abort());
  let saved = 0;
  const checkpoint = async (step: number): Promise<void> => {
    await saveModel(model, options.out);
    saved = step;
  };
  const { steps, seed } = options;
  const progress = new Progress(steps);
  const losses = await train({
    model,
    engine,
    text: corpus.train,
    steps,
    seed,
    progress,
    checkpoint,
    signal: interrupted.signal,
  });
  if (interrupted.signal.aborted) {
    const kept =
      saved > 0
        ? `the checkpoint of step ${saved} is in ${options.out}`
        : "no checkpoint had been written yet";
    console.log(`\nStopped after ${losses.length} of ${steps} steps; ${kept}.`);
    process.exitCode = 130;
    return;
  }
  await checkpoint(steps);
  const exact = await isBitExact(model, options.out);
  await report(model, engine, corpus, losses, options);
  console.log(
    `Wrote ${["loss.svg", "attention.svg", "model.safetensors", "config.json"].map((name) => join(options.out, name)).join(", ")}; the weights read back ${exact ? "bit for bit" : "DIFFERENT"}.`,
  );
  console.log(`Took ${((performance.now() - began) / 1000).toFixed(1)} s.`);
  if (!exact) process.exitCode = 1;
}

if (import.meta.main) {
  try {
    const options = parseOptions(process.argv.slice(2));
    if (options === undefined) console.log(usage());
    else await main(options);
  } catch (error) {
    if (error instanceof UsageError) console.error(`${error.message}\n\n${usage()}`);
    else if (error instanceof HeedError) console.error(`${error.name}: ${error.message}`);
    else throw error;
    process.exitCode = error instanceof UsageError ? 2 : 1;
  }
}
