// A decoder with random weights for the examples of the cache: two layers of grouped-query attention, small enough to read and to run.
import "./engine.ts";
import { GroupedQueryAttention, RMSNorm } from "@heed/attention";
import { KvCache, type Sequence } from "@heed/kvcache";
import { add, type BlockTableReader, gather, linear, randn, scope, tensor, type Tensor } from "@heed/tensor";

type F = Tensor<"float32">;
const [HIDDEN, HEADS, KV_HEADS, HEAD_DIM] = [64, 4, 2, 16];

/** New tokens of one sequence. */
export interface Extension {
  readonly sequence: Sequence;
  readonly ids: readonly number[];
}

/** x = embedding; x += attention(norm(x)) in each layer; logits = head . norm(x). Over 64 tokens. */
export class TinyDecoder {
  static readonly vocabSize = 64;
  readonly #embedding: F; // [V, hidden]
  readonly #head: F; // [V, hidden]
  readonly #layers: readonly GroupedQueryAttention[];
  readonly #norm = RMSNorm.create({ shape: [HIDDEN] });
  private constructor(embedding: F, head: F, layers: readonly GroupedQueryAttention[]) {
    this.#embedding = embedding;
    this.#head = head;
    this.#layers = layers;
  }
  /** The same seed gives the same decoder. */
  static create(seed: number): TinyDecoder {
    let draws = 0;
    const random = (rows: number, std: number): F =>
      randn([rows, HIDDEN], { seed: 100 * seed + draws++, std });
    const attention = (layerIndex: number): GroupedQueryAttention => {
      const parameters = new Map([
        ["q_proj.weight", random(HEADS * HEAD_DIM, 0.2)],
        ["k_proj.weight", random(KV_HEADS * HEAD_DIM, 0.2)],
        ["v_proj.weight", random(KV_HEADS * HEAD_DIM, 0.2)],
        ["o_proj.weight", random(HIDDEN, layerIndex === 0 ? 0.2 : 0.05)], // the later layer changes little
      ]);
      const heads = { hiddenSize: HIDDEN, numHeads: HEADS, numKvHeads: KV_HEADS, headDim: HEAD_DIM };
      return new GroupedQueryAttention({ ...heads, rope: {}, layerIndex }, parameters);
    };
    const V = TinyDecoder.vocabSize;
    return new TinyDecoder(random(V, 1), random(V, 0.3), [attention(0), attention(1)]);
  }
  /** Its first layer alone, over the same weights: cheaper, and often of the same opinion. */
  firstLayer(): TinyDecoder {
    return new TinyDecoder(this.#embedding, this.#head, this.#layers.slice(0, 1));
  }
  /** A cache for this decoder, with pages of four tokens. */
  cache(maxPages: number): KvCache {
    const rows = { numKvHeads: KV_HEADS, headDim: HEAD_DIM, pageSize: 4 };
    return new KvCache({ layers: this.#layers.length, ...rows, maxPages });
  }
  /**
   * One step: appends tokens to sequences, and returns the logits after each of them, [V] by token by sequence. Out of pages it throws
   * OutOfMemoryError and changes nothing.
   */
  async extend(cache: KvCache, extensions: readonly Extension[]): Promise<Float32Array[][]> {
    const ids = extensions.flatMap((e) => e.ids);
    using step = cache.reserve(extensions.map((e) => ({ sequence: e.sequence, tokens: e.ids.length })));
    const rows = await this.logits(ids, step);
    step.commit(ids);
    return extensions.map((e) => rows.splice(0, e.ids.length));
  }
  /** Logits [V] after each token: of one sequence from its start, or of the step's new tokens. */
  async logits(ids: readonly number[], cache?: BlockTableReader): Promise<Float32Array[]> {
    using logits = scope(() => {
      let x = gather(this.#embedding, tensor(Int32Array.from(ids), [1, ids.length], { dtype: "int32" }));
      for (const layer of this.#layers)
        x = add(x, layer.forward(this.#norm.forward(x), cache === undefined ? {} : { cache }));
      return linear(this.#norm.forward(x), this.#head);
    });
    const values = await logits.read();
    const V = TinyDecoder.vocabSize;
    return ids.map((_, row) => values.subarray(row * V, (row + 1) * V));
  }
}
/** The likeliest token. */
export function likeliest(logits: Float32Array): number {
  return logits.indexOf(Math.max(...logits));
}
