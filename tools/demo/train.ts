import { type Engine, scope, tensor, type Tensor } from "@heed/tensor";
import { AdamW } from "./adamw.ts";
import { crossEntropy, crossEntropyVjp } from "./loss.ts";
import type { Decoder } from "./model.ts";
import type { Progress } from "./progress.ts";

/** Sequences in a batch. */
const BATCH = 8;
const PEAK_RATE = 3e-3;
const LN2 = Math.log(2);

/** Linear warm-up over the first 5 % of steps, then a cosine down to a tenth of the peak. */
export function learningRate(step: number, steps: number): number {
  const warmUp = Math.max(1, Math.floor(steps / 20));
  if (step < warmUp) return (PEAK_RATE * (step + 1)) / warmUp;
  const done = (step - warmUp) / Math.max(1, steps - warmUp);
  return PEAK_RATE * (0.1 + 0.45 * (1 + Math.cos(Math.PI * done)));
}
/** Windows of length S that start at the given places: tokens [n, S] and the bytes that follow each [n * S]. */
export function windows(
  text: Uint8Array,
  starts: readonly number[],
  S: number,
  engine: Engine,
): { tokens: Tensor<"int32">; targets: Tensor<"int32"> } {
  const pick = (shift: number): Int32Array<ArrayBuffer> => {
    const out = new Int32Array(starts.length * S);
    starts.forEach((start, i) => out.set(text.subarray(start + shift, start + shift + S), i * S));
    return out;
  };
  return {
    tokens: tensor(pick(0), [starts.length, S], { dtype: "int32", engine }),
    targets: tensor(pick(1), [starts.length * S], { dtype: "int32", engine }),
  };
}
/** Numbers in [0, 1) from a seed (mulberry32, T. Ettinger). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
/** What a run of training takes. */
export interface Training {
  readonly model: Decoder;
  readonly engine: Engine;
  readonly text: Uint8Array;
  readonly steps: number;
  readonly seed: number;
  readonly progress: Progress;
  /** Called now and then, with the steps done; it may save the model. */
  checkpoint(step: number): Promise<void>;
  /** Training stops before the next step once this is aborted. */
  readonly signal: AbortSignal;
}
/** Trains on random windows; returns the loss of every step in bits per byte. */
export async function train(run: Training): Promise<number[]> {
  const { model, engine, text, steps, signal } = run;
  const S = Math.min(model.config.context, text.length - 1);
  const random = generator(run.seed);
  const losses: number[] = [];
  using optimizer = new AdamW(model.parameters);
  const saveEvery = Math.max(1, Math.ceil(steps / 5));
  const began = performance.now();
  for (let step = 0; step < steps && !signal.aborted; step++) {
    const starts = Array.from({ length: BATCH }, () => Math.floor(random() * (text.length - S)));
    const loss = scope(() => {
      const { tokens, targets } = windows(text, starts, S, engine);
      const pass = model.vjp(tokens);
      const { value, gradient } = crossEntropyVjp(pass.logits, targets);
      optimizer.step(pass.backward(gradient), learningRate(step, steps));
      return value.alias();
    });
    losses.push((await loss.read())[0]! / LN2);
    loss[Symbol.dispose]();
    const rate = ((step + 1) * BATCH * S) / ((performance.now() - began) / 1000);
    run.progress.show(step + 1, `loss ${losses.at(-1)!.toFixed(3)} bits/byte  ${rate.toFixed(0)} tokens/s`);
    if ((step + 1) % saveEvery === 0 && step + 1 < steps) await run.checkpoint(step + 1);
    await Bun.sleep(0); // lets Ctrl-C through
  }
  return losses;
}
/** Loss on a text in bits per byte: consecutive windows, every byte but the first predicted once. */
export async function evaluate(model: Decoder, text: Uint8Array, engine: Engine): Promise<number> {
  const S = Math.min(model.config.context, text.length - 1);
  const all = Array.from({ length: Math.floor((text.length - 1) / S) }, (_, i) => i * S);
  let sum = 0;
  for (let i = 0; i < all.length; i += BATCH) {
    const starts = all.slice(i, i + BATCH);
    using loss = scope(() => {
      const { tokens, targets } = windows(text, starts, S, engine);
      return crossEntropy(model.forward(tokens), targets);
    });
    sum += (await loss.read())[0]! * starts.length;
  }
  return sum / all.length / LN2;
}
