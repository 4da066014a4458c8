// onnxruntime-node as a peer. Two times come from every call:
//   call    what `await session.run(...)` takes. The binding (1.30) reads inputs in place and lets the operator write
//           into the outputs it is given, but then copies every output it was asked for into a fresh ArrayBuffer. A
//           decode step must ask for the present keys and values, or the operator works on copies of its own, so through
//           the binding it pays for copying the whole cache: 2 x 33 MB at 8192 tokens of 8 heads, 20 to 40 ms.
//   kernel  what the operators themselves took, from the runtime's profiler: no binding, no copies. This is the number
//           that ratios are made of, because it is what a native caller of the same library would see at best.
// GroupQueryAttention is the fastest operator for all shapes here: ai.onnx Attention (opset 23) takes 1.1 times as long
// at 512 tokens and 2 times at 2048, and copies nothing less at decode. Its float16 form is no faster than its float32 form on a
// CPU without float16 arithmetic (decode 1024: 2.5 against 2.1 ms), so 16-bit rows are compared with float32 too.

import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { InferenceSession, Tensor } from "onnxruntime-node";
import { cacheNames, groupQueryAttentionModel, layerModel, linearModel } from "./onnx-model.ts";
import type { AttentionShape, LayerWeights } from "./onnx-model.ts";

/** A peer ready to run one shape. `close` releases it and returns what its operators took in each run, in nanoseconds. */
export interface Peer {
  readonly name: string;
  /** The output of the latest run, row-major; overwritten by the next. */
  readonly output: Float32Array;
  run(): Promise<void>;
  close(): Promise<number[]>;
}

type Runtime = typeof import("onnxruntime-node");
type Values = Record<string, Tensor>;

/** Opens sessions with a given number of threads; the number counts the calling thread. */
export interface PeerRuntime {
  /** Causal prefill of `query` [B, S, Hq * D] over `key` and `value` [B, S, Hkv * D]; output [B, S, Hq * D]. */
  prefill(shape: AttentionShape, query: Float32Array, key: Float32Array, value: Float32Array): Promise<Peer>;
  /**
   * One decode step over a cache of `totalLength` tokens: the last token's `key` and `value` [B, 1, Hkv * D] are
   * appended in place to `keyCache` and `valueCache` [B, Hkv, capacity, D], then `query` [B, 1, Hq * D] attends.
   */
  decode(shape: AttentionShape, step: DecodeStep): Promise<Peer>;
  /** `x` [rows, inFeatures] times `weight` [inFeatures, outFeatures]. */
  linear(
    rows: number,
    inFeatures: number,
    outFeatures: number,
    x: Float32Array,
    weight: Float32Array,
  ): Promise<Peer>;
  /** A whole attention layer on `x` [B, S, hidden]; with `caches`, a decode step or a prefill into them. */
  layer(
    shape: AttentionShape,
    hidden: number,
    weights: LayerWeights,
    x: Float32Array,
    caches?: Pick<DecodeStep, "keyCache" | "valueCache">,
  ): Promise<Peer>;
}

/** Inputs of one decode step; see {@link PeerRuntime.decode}. */
export interface DecodeStep {
  readonly query: Float32Array;
  readonly key: Float32Array;
  readonly value: Float32Array;
  readonly keyCache: Float32Array;
  readonly valueCache: Float32Array;
}

/**
 * Loads onnxruntime-node. Throws an Error that names the platform when the package or its native library is missing
 * (1.30 ships linux and windows on x64 and arm64, and macOS on arm64).
 */
export async function openPeerRuntime(threads: number): Promise<PeerRuntime> {
  let runtime: Runtime;
  try {
    runtime = await import("onnxruntime-node");
  } catch (cause) {
    throw new Error(
      `onnxruntime-node does not load on ${process.platform}-${process.arch}: ${String(cause)}`,
      { cause },
    );
  }
  return new OnnxRuntime(runtime, threads);
}

class OnnxRuntime implements PeerRuntime {
  readonly #runtime: Runtime;
  readonly #threads: number;

  constructor(runtime: Runtime, threads: number) {
    this.#runtime = runtime;
    this.#threads = threads;
  }

  prefill(shape: AttentionShape, query: Float32Array, key: Float32Array, value: Float32Array): Promise<Peer> {
    const output = this.#activation(shape, shape.numHeads * shape.headDim);
    // The present keys and values are not fetched: the operator writes them into the session's arena, nobody copies them.
    return this.#open("GroupQueryAttention", groupQueryAttentionModel(shape, "none"), {
      feeds: { ...this.#queryKeyValue(shape, query, key, value), ...this.#lengths(shape) },
      fetches: { output },
    });
  }

  decode(shape: AttentionShape, step: DecodeStep): Promise<Peer> {
    const past = this.#caches(shape, cacheNames.past, step);
    const present = this.#caches(shape, cacheNames.present, step);
    const output = this.#activation(shape, shape.numHeads * shape.headDim);
    return this.#open("GroupQueryAttention", groupQueryAttentionModel(shape, "shared"), {
      feeds: {
        ...this.#queryKeyValue(shape, step.query, step.key, step.value),
        ...past,
        ...this.#lengths(shape),
      },
      fetches: { output, ...present },
    });
  }

  linear(
    rows: number,
    inFeatures: number,
    outFeatures: number,
    x: Float32Array,
    weight: Float32Array,
  ): Promise<Peer> {
    const output = this.#float(new Float32Array(rows * outFeatures), [rows, outFeatures]);
    return this.#open("MatMul", linearModel(rows, inFeatures, outFeatures, weight), {
      feeds: { x: this.#float(x, [rows, inFeatures]) },
      fetches: { output },
    });
  }

  layer(
    shape: AttentionShape,
    hidden: number,
    weights: LayerWeights,
    x: Float32Array,
    caches?: Pick<DecodeStep, "keyCache" | "valueCache">,
  ): Promise<Peer> {
    const past = caches ? this.#caches(shape, cacheNames.past, caches) : {};
    const present = caches ? this.#caches(shape, cacheNames.present, caches) : {};
    const model = layerModel(shape, hidden, weights, caches ? "shared" : "none");
    return this.#open("MatMul + GroupQueryAttention", model, {
      feeds: {
        x: this.#float(x, [shape.batch, shape.queryLength, hidden]),
        ...past,
        ...this.#lengths(shape),
      },
      fetches: { output: this.#activation(shape, hidden), ...present },
    });
  }

  async #open(
    operator: string,
    model: Uint8Array,
    values: { feeds: Values; fetches: Values & { output: Tensor } },
  ): Promise<Peer> {
    const folder = await mkdtemp(join(tmpdir(), "heed-bench-"));
    const session = await this.#runtime.InferenceSession.create(model, {
      intraOpNumThreads: this.#threads,
      interOpNumThreads: 1,
      executionMode: "sequential",
      graphOptimizationLevel: "all",
      enableCpuMemArena: true,
      enableMemPattern: true,
      enableProfiling: true,
      profileFilePrefix: join(folder, "profile"),
      logSeverityLevel: 3,
      // Its workers spin within a run, as by default, but stop when it returns: they must not take a core from
      // whoever is measured next.
      extra: { session: { force_spinning_stop: "1" } },
    });
    return new OnnxPeer(`onnxruntime ${operator} float32`, session, values, folder);
  }

  #float(data: Float32Array, dims: readonly number[]): Tensor {
    return new this.#runtime.Tensor("float32", data, dims);
  }

  #activation(shape: AttentionShape, width: number): Tensor {
    const dims = [shape.batch, shape.queryLength, width];
    return this.#float(new Float32Array(shape.batch * shape.queryLength * width), dims);
  }

  #queryKeyValue(shape: AttentionShape, query: Float32Array, key: Float32Array, value: Float32Array): Values {
    const rows = [shape.batch, shape.queryLength];
    const keyWidth = shape.numKvHeads * shape.headDim;
    return {
      query: this.#float(query, [...rows, shape.numHeads * shape.headDim]),
      key: this.#float(key, [...rows, keyWidth]),
      value: this.#float(value, [...rows, keyWidth]),
    };
  }

  /** Tensors over the caller's caches. Past and present over the same memory make the operator append in place. */
  #caches(
    shape: AttentionShape,
    names: readonly [string, string],
    { keyCache, valueCache }: Pick<DecodeStep, "keyCache" | "valueCache">,
  ): Values {
    const dims = [shape.batch, shape.numKvHeads, shape.capacity, shape.headDim];
    return { [names[0]]: this.#float(keyCache, dims), [names[1]]: this.#float(valueCache, dims) };
  }

  #lengths(shape: AttentionShape): Values {
    const last = new Int32Array(shape.batch).fill(shape.totalLength - 1);
    return {
      seqlens_k: new this.#runtime.Tensor("int32", last, [shape.batch]),
      total_sequence_length: new this.#runtime.Tensor("int32", Int32Array.of(shape.totalLength), []),
    };
  }
}

class OnnxPeer implements Peer {
  readonly name: string;
  readonly output: Float32Array;
  readonly #session: InferenceSession;
  readonly #values: { feeds: Values; fetches: Values };
  readonly #folder: string;

  constructor(
    name: string,
    session: InferenceSession,
    values: { feeds: Values; fetches: Values & { output: Tensor } },
    folder: string,
  ) {
    this.name = name;
    this.output = values.fetches.output.data as Float32Array;
    this.#session = session;
    this.#values = values;
    this.#folder = folder;
  }

  async run(): Promise<void> {
    await this.#session.run(this.#values.feeds, this.#values.fetches);
  }

  async close(): Promise<number[]> {
    await this.#session.release(); // writes the profile
    try {
      const [file] = await readdir(this.#folder);
      if (file === undefined) throw new Error("onnxruntime wrote no profile");
      return kernelTimes(await Bun.file(join(this.#folder, file)).json());
    } finally {
      await rm(this.#folder, { recursive: true, force: true });
    }
  }
}

interface ProfileEvent {
  readonly name: string;
  readonly dur: number;
}

/**
 * Nanoseconds spent in operators, one entry a run, from the runtime's profile: a run's `..._kernel_time` events, in
 * microseconds, come before its `model_run` event.
 */
export function kernelTimes(events: readonly ProfileEvent[]): number[] {
  const runs: number[] = [];
  let sum = 0;
  for (const { name, dur } of events) {
    if (name.endsWith("_kernel_time")) sum += dur * 1e3;
    if (name !== "model_run") continue;
    runs.push(sum);
    sum = 0;
  }
  return runs;
}
