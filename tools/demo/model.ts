import { GroupedQueryAttention, Linear, RMSNorm } from "@heed/attention";
import {
  add,
  type BlockTableReader,
  type Engine,
  gather,
  linear,
  linearBackward,
  randn,
  scatterAdd,
  scope,
  type Tensor,
  zeros,
} from "@heed/tensor";
import { SwiGLU } from "./swiglu.ts";

type F = Tensor<"float32">;

/** The shape of a decoder in Llama's form, over bytes. */
export interface ModelConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly ropeTheta: number;
  readonly normEps: number;
  /** Tokens of a training window. */
  readonly context: number;
}
/** What the demo trains: 1.2 million parameters, small enough for a minute on two cores. */
export const DEMO_CONFIG: ModelConfig = {
  vocabSize: 256,
  hiddenSize: 192,
  intermediateSize: 512,
  numLayers: 3,
  numHeads: 6,
  numKvHeads: 2,
  headDim: 32,
  ropeTheta: 10000,
  normEps: 1e-5,
  context: 128,
};
/** A decoder of 0.1 million parameters, for engines that are slow: the emulated one. */
export const SMALL_CONFIG: ModelConfig = {
  ...DEMO_CONFIG,
  hiddenSize: 64,
  intermediateSize: 128,
  numLayers: 2,
  numHeads: 4,
  headDim: 16,
};
interface Block {
  readonly inputNorm: RMSNorm;
  readonly attention: GroupedQueryAttention;
  readonly outputNorm: RMSNorm;
  readonly mlp: SwiGLU;
}
/** Logits of a training batch, and the gradient of every parameter given theirs. */
export interface DecoderVjp {
  readonly logits: F; // [B * S, V]
  backward(dLogits: F): Map<string, Tensor>;
  readonly saved: readonly Tensor[];
}
const BLOCK_NAMES = {
  inputNorm: "input_layernorm",
  attention: "self_attn",
  outputNorm: "post_attention_layernorm",
} as const;

/** A decoder in Llama's form with tied embeddings; parameters under their Hugging Face names. */
export class Decoder {
  readonly config: ModelConfig;
  readonly parameters: Map<string, Tensor> = new Map();
  readonly #embedding: F; // [V, hidden]
  readonly #blocks: readonly Block[];
  readonly #norm: RMSNorm;

  /** Random weights, or `weights` by name (a missing or misshapen one throws). */
  constructor(
    config: ModelConfig,
    engine: Engine,
    source: { readonly seed: number } | { readonly weights: ReadonlyMap<string, Tensor> },
  ) {
    this.config = config;
    const { vocabSize, hiddenSize, intermediateSize } = config;
    let draws = 0;
    const weight = (name: string, shape: readonly number[], gain?: number): Tensor => {
      const made =
        "weights" in source
          ? source.weights.get(name)!
          : gain === undefined
            ? randn(shape, { engine, std: 0.02, seed: source.seed * 1000 + draws++ })
            : add(zeros(shape, { engine }), gain);
      this.parameters.set(name, made);
      return made;
    };
    const project = (name: string, outFeatures: number, inFeatures: number): Linear =>
      new Linear(
        { inFeatures, outFeatures },
        { weight: weight(`${name}.weight`, [outFeatures, inFeatures]) },
      );
    const norm = (name: string): RMSNorm =>
      new RMSNorm(
        { shape: [hiddenSize], eps: config.normEps },
        { weight: weight(`${name}.weight`, [hiddenSize], 1) },
      );
    this.#embedding = weight("model.embed_tokens.weight", [vocabSize, hiddenSize]) as F;
    this.#blocks = Array.from({ length: config.numLayers }, (_, layer) => {
      const prefix = `model.layers.${layer}`;
      return {
        inputNorm: norm(`${prefix}.${BLOCK_NAMES.inputNorm}`),
        attention: this.#attention(layer, weight),
        outputNorm: norm(`${prefix}.${BLOCK_NAMES.outputNorm}`),
        mlp: new SwiGLU(
          project(`${prefix}.mlp.gate_proj`, intermediateSize, hiddenSize),
          project(`${prefix}.mlp.up_proj`, intermediateSize, hiddenSize),
          project(`${prefix}.mlp.down_proj`, hiddenSize, intermediateSize),
        ),
      };
    });
    this.#norm = norm("model.norm");
  }
  #attention(
    layer: number,
    weight: (name: string, shape: readonly number[]) => Tensor,
  ): GroupedQueryAttention {
    const { hiddenSize, numHeads, numKvHeads, headDim, ropeTheta } = this.config;
    const rows = { q: numHeads * headDim, k: numKvHeads * headDim, v: numKvHeads * headDim };
    const parameters = new Map<string, Tensor>();
    for (const [name, out] of Object.entries(rows)) {
      parameters.set(
        `${name}_proj.weight`,
        weight(`model.layers.${layer}.self_attn.${name}_proj.weight`, [out, hiddenSize]),
      );
    }
    parameters.set(
      "o_proj.weight",
      weight(`model.layers.${layer}.self_attn.o_proj.weight`, [hiddenSize, rows.q]),
    );
    return new GroupedQueryAttention(
      { hiddenSize, numHeads, numKvHeads, headDim, rope: { base: ropeTheta }, layerIndex: layer },
      parameters,
    );
  }
  /**
   * Logits [T, V] of tokens int32 [B, S]; with a cache's step, of the tokens int32 [1, T] that the step appends. The layers read
   * what came before from the cache.
   */
  forward(tokens: Tensor<"int32">, cache?: BlockTableReader): F {
    return scope(() => {
      let x = gather(this.#embedding, tokens);
      for (const block of this.#blocks) {
        x = add(x, block.attention.forward(block.inputNorm.forward(x), cache === undefined ? {} : { cache }));
        x = add(x, block.mlp.forward(block.outputNorm.forward(x)));
      }
      return linear(this.#norm.forward(x), this.#embedding).reshape([-1, this.config.vocabSize]) as F;
    });
  }
  /** {@link forward} without a cache, with its backward pass. */
  vjp(tokens: Tensor<"int32">): DecoderVjp {
    return scope(() => {
      const saved: Tensor[] = [];
      const backwards: ((d: F, into: Map<string, Tensor>) => F)[] = [];
      let x = gather(this.#embedding, tokens);
      // A residual branch: x + f(norm(x)); its gradient is the upstream one plus what comes back through the branch.
      const branch = (
        prefix: string,
        norm: RMSNorm,
        normName: string,
        layer: Block["attention"] | SwiGLU,
        name: string,
      ): void => {
        const n = norm.vjp(x);
        const f = layer.vjp(n.output);
        saved.push(...n.saved, ...f.saved);
        x = add(x, f.output);
        backwards.push((d, into) => {
          const df = f.backward(d);
          const dn = n.backward(df.input);
          for (const [parameter, g] of df.parameters) into.set(`${prefix}.${name}.${parameter}`, g);
          into.set(`${prefix}.${normName}.weight`, dn.parameters.get("weight")!);
          return add(d, dn.input);
        });
      };
      this.#blocks.forEach((block, i) => {
        const prefix = `model.layers.${i}`;
        branch(prefix, block.inputNorm, BLOCK_NAMES.inputNorm, block.attention, BLOCK_NAMES.attention);
        branch(prefix, block.outputNorm, BLOCK_NAMES.outputNorm, block.mlp, "mlp");
      });
      const last = this.#norm.vjp(x);
      saved.push(...last.saved, last.output);
      const { vocabSize, hiddenSize } = this.config;
      const logits = linear(last.output, this.#embedding).reshape([-1, vocabSize]) as F;
      const backward = (dLogits: F): Map<string, Tensor> =>
        scope(() => {
          const gradients = new Map<string, Tensor>();
          const hidden = last.output.reshape([-1, hiddenSize]) as F;
          const head = linearBackward(hidden, this.#embedding, dLogits);
          const dLast = last.backward(head.x.reshape(last.output.shape) as F);
          gradients.set("model.norm.weight", dLast.parameters.get("weight")!);
          const dx = backwards.reduceRight((d, step) => step(d, gradients), dLast.input);
          // The embedding is read twice: by the tokens and, tied, by the head.
          scatterAdd(dx.reshape([-1, hiddenSize]), tokens.reshape([-1]), head.weight);
          gradients.set("model.embed_tokens.weight", head.weight);
          return gradients;
        });
      return { logits, backward, saved };
    });
  }
  /** The attention layer of one block, and the input that it sees for these tokens: what a picture of its heads needs. */
  attentionInputs(tokens: Tensor<"int32">): { readonly layer: GroupedQueryAttention; readonly x: F }[] {
    let x = gather(this.#embedding, tokens);
    return this.#blocks.map((block) => {
      const input = block.inputNorm.forward(x);
      x = add(x, block.attention.forward(input));
      x = add(x, block.mlp.forward(block.outputNorm.forward(x)));
      return { layer: block.attention, x: input };
    });
  }
}
