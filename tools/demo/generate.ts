import { KvCache } from "@heed/kvcache";
import { type Engine, scope, tensor, type Tensor } from "@heed/tensor";
import type { Decoder } from "./model.ts";
import { generator } from "./train.ts";

/** What came out, and how fast. */
export interface Generation {
  /** Prompt and continuation. */
  readonly bytes: Uint8Array;
  /** Tokens after the first, by time. */
  readonly tokensPerSecond: number;
  /** Largest difference between the logits of cached decode and of one full forward pass over the same tokens. */
  readonly cacheDifference: number;
}
/** Options of {@link generate}. */
export interface GenerateOptions {
  readonly prompt: Uint8Array;
  readonly tokens: number;
  readonly temperature: number;
  readonly seed: number;
  /** Called with each new byte. */
  emit(byte: number): void;
}
/** A cache with a page pool of the model's shape and room for one sequence. */
export function cacheFor({ config }: Decoder, engine: Engine, tokens: number): KvCache {
  const pageSize = 16;
  return new KvCache({
    layers: config.numLayers,
    numKvHeads: config.numKvHeads,
    headDim: config.headDim,
    pageSize,
    maxPages: Math.ceil(tokens / pageSize),
    engine,
  });
}
/** A draw from softmax(logits / temperature). */
function sample(logits: Float32Array, temperature: number, unit: number): number {
  let top = -Infinity;
  for (const x of logits) top = Math.max(top, x);
  const weights = Float64Array.from(logits, (x) => Math.exp((x - top) / temperature));
  let left = unit * weights.reduce((a, b) => a + b, 0);
  for (let i = 0; i < weights.length; i++) {
    left -= weights[i]!;
    if (left <= 0) return i;
  }
  return weights.length - 1;
}
function difference(a: Float32Array, b: Float32Array): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}
function join(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
/** Continues a prompt through the paged cache: one step for the prompt, then one a token. */
export async function generate(
  model: Decoder,
  engine: Engine,
  options: GenerateOptions,
): Promise<Generation> {
  const { prompt, tokens, temperature } = options;
  const random = generator(options.seed);
  const bytes = new Uint8Array(prompt.length + tokens);
  bytes.set(prompt);
  using cache = cacheFor(model, engine, bytes.length);
  const sequence = cache.open();
  const ids = (part: Uint8Array): Tensor<"int32"> =>
    tensor(Int32Array.from(part), [1, part.length], { dtype: "int32", engine });
  const cached: Float32Array[] = []; // logits rows, for the comparison
  const advance = async (part: Uint8Array): Promise<Float32Array> => {
    using step = cache.reserve([{ sequence, tokens: part.length }]);
    using logits = scope(() => model.forward(ids(part), step));
    const rows = await logits.read();
    step.commit(part);
    cached.push(rows);
    return rows.subarray(rows.length - model.config.vocabSize);
  };
  let last = await advance(prompt);
  const began = performance.now();
  for (let at = prompt.length; at < bytes.length; at++) {
    bytes[at] = sample(last, temperature, random());
    options.emit(bytes[at]!);
    if (at + 1 < bytes.length) last = await advance(bytes.subarray(at, at + 1));
  }
  const seconds = (performance.now() - began) / 1000;
  using full = scope(() => model.forward(ids(bytes.subarray(0, bytes.length - 1))));
  const cacheDifference = difference(join(cached), await full.read());
  return { bytes, tokensPerSecond: Math.max(0, tokens - 1) / seconds, cacheDifference };
}
