import {
  adopt,
  ArgumentError,
  attention,
  attentionScores,
  type AttentionScoresOptions,
  type AttentionVjp,
  attentionVjp,
  type BlockTableReader,
  cast,
  type FloatDType,
  pagedAttention,
  rmsNorm,
  rmsNormBackward,
  type ScoreOptions,
  scope,
  type Tensor,
  unscoped,
} from "@heed/tensor";
import {
  checkInput,
  type GroupedQueryAttentionCall,
  type GroupedQueryAttentionVjpOptions,
  maskOptions,
} from "./gqa-call.ts";
import { randomParameters } from "./gqa-init.ts";
import {
  type GroupedQueryAttentionAttributes,
  type GroupedQueryAttentionConfig,
  type GroupedQueryAttentionOptions,
  parameterShapes,
  resolveHeadConfig,
  resolveRope,
} from "./gqa-options.ts";
import {
  type InitOptions,
  type Layer,
  type LayerGradients,
  layerGradients,
  type LayerVjp,
  layerVjp,
} from "./layer.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { Projections } from "./projections.ts";
import { type Positions, RotaryEmbedding } from "./rope.ts";

type Heads = readonly [q: Tensor<FloatDType>, k: Tensor<FloatDType>, v: Tensor<FloatDType>];
const WHAT = "GroupedQueryAttention";
const NORMS = ["q_norm.weight", "k_norm.weight"] as const;

/** [..., H * D] as [..., H, D]: a view. */
function splitHeads(t: Tensor, headDim: number): Tensor {
  return t.reshape([...t.shape.slice(0, -1), t.shape.at(-1)! / headDim, headDim]);
}
/** [..., H, D] as [..., H * D], whatever the strides. */
function joinHeads(t: Tensor): Tensor {
  const [H, D] = t.shape.slice(-2) as [number, number];
  return t.contiguous().reshape([...t.shape.slice(0, -2), H * D]);
}
/**
 * Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): x [B, S, hidden] is projected to Hq query
 * and Hkv key and value heads; queries and keys are normalised (optional) and rotated (optional); query head
 * h attends over key head floor(h * Hkv / Hq); the heads are projected back to [B, S, hidden]. Hkv = Hq is
 * multi-head, Hkv = 1 multi-query attention.
 *
 * Parameters: "q_proj.weight" [Hq * D, hidden], "k_proj.weight" and "v_proj.weight" [Hkv * D, hidden],
 * "o_proj.weight" [hidden, Hq * D], their ".bias", "q_norm.weight" and "k_norm.weight" [D], "sinks" [Hq], as
 * options call for. Where q, k and v weights are neighbours in memory, as {@link create} lays them, one
 * matrix product serves the three.
 */
export class GroupedQueryAttention implements Layer<GroupedQueryAttentionCall> {
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** The options with their defaults filled in. */
  readonly config: GroupedQueryAttentionConfig;
  readonly #qkv: Projections;
  readonly #out: Projections;
  readonly #rope: RotaryEmbedding | undefined;
  readonly #ownsRope: boolean;

  /**
   * A layer over given parameters, whose memory it shares. Throws ArgumentError (a bad option; a parameter
   * that is missing or unknown), ShapeError, DTypeError, DeviceError, DisposedError, which name the
   * parameter.
   */
  constructor(options: GroupedQueryAttentionOptions, parameters: Parameters) {
    const config = resolveHeadConfig(options);
    this.#rope = unscoped(() => resolveRope(options, config.headDim));
    this.config = { ...config, rope: this.#rope?.options ?? null };
    this.#ownsRope = !(options.rope instanceof RotaryEmbedding);
    this.parameters = ownParameters(checkParameters(WHAT, parameters, parameterShapes(this.config)));
    const part = (name: string): { weight: Tensor; bias: Tensor | undefined } => ({
      weight: this.parameters.get(`${name}.weight`)!,
      bias: this.parameters.get(`${name}.bias`),
    });
    this.#qkv = new Projections([part("q_proj"), part("k_proj"), part("v_proj")]);
    this.#out = new Projections([part("o_proj")]);
    adopt(this);
  }
  /** The constructor under the name that says what it does; `options` may be another layer's attributes. */
  static fromParameters(
    options: GroupedQueryAttentionOptions,
    parameters: Parameters,
  ): GroupedQueryAttention {
    return new GroupedQueryAttention(options, parameters);
  }
  /**
   * A layer with random parameters; see {@link InitOptions}. Throws ArgumentError, ShapeError,
   * OutOfMemoryError.
   */
  static create(options: GroupedQueryAttentionOptions & InitOptions): GroupedQueryAttention {
    return scope(
      () => new GroupedQueryAttention(options, randomParameters(resolveHeadConfig(options), options)),
    );
  }
  /** Whether one matrix product serves q, k and v. */
  get isMerged(): boolean {
    return this.#qkv.isMerged;
  }
  attributes(): GroupedQueryAttentionAttributes {
    return { operation: WHAT, ...this.config };
  }
  /**
   * x [B, S, hidden] to [B, S, hidden]. With a cache x may also be ragged, [T, hidden], and B * S (or T) are
   * the step's tokens. A float32 x takes 16-bit weights. Throws ShapeError, DTypeError, ArgumentError,
   * DeviceError, DisposedError, OutOfMemoryError.
   */
  forward<D extends FloatDType>(x: Tensor<D>, options: GroupedQueryAttentionCall = {}): Tensor<D> {
    return scope(() => {
      const { cache } = options;
      checkInput(x, this.config.hiddenSize, cache);
      const attended = cache === undefined ? this.#attend(x, options) : this.#attendPaged(x, cache, options);
      const output = this.#out.forward(joinHeads(attended) as Tensor<FloatDType>)[0]!;
      return output.reshape(x.shape) as Tensor as Tensor<D>;
    });
  }
  /**
   * The scores of x's tokens among themselves at one stage, by default the probabilities: [B, Hq, S, S],
   * float32 (float64 for float64). For inspection: it takes memory of that size. Same errors as {@link
   * forward}.
   */
  scores(
    x: Tensor,
    options: GroupedQueryAttentionVjpOptions & Pick<AttentionScoresOptions, "stage" | "softmaxDtype"> = {},
  ): Tensor {
    return scope(() => {
      checkInput(x, this.config.hiddenSize, undefined);
      const [q, k, v] = this.#rotate(this.#normalize(this.#project(x)), options.positions);
      const { stage, softmaxDtype } = options;
      return attentionScores(q, k, v, {
        ...this.#scoreOptions(),
        ...maskOptions(options),
        stage,
        softmaxDtype,
      }).scores;
    });
  }
  #attend(x: Tensor, options: GroupedQueryAttentionVjpOptions): Tensor {
    const [q, k, v] = this.#rotate(this.#normalize(this.#project(x)), options.positions);
    return attention(q, k, v, { ...this.#scoreOptions(), ...maskOptions(options) });
  }
  #attendPaged(x: Tensor, cache: BlockTableReader, options: GroupedQueryAttentionVjpOptions): Tensor {
    for (const name of ["positions", "attnMask", "kvLengths"] as const) {
      if (options[name] !== undefined)
        throw new ArgumentError(`[${WHAT}] ${name} and cache exclude each other: a cache gives its own`, {
          [name]: true,
        });
    }
    const rows = x.contiguous().reshape([cache.positions.size, this.config.hiddenSize]); // [T, hidden]
    const [q, k, v] = this.#rotate(this.#normalize(this.#project(rows)), cache.positions);
    cache.write(this.config.layerIndex, k, v);
    return pagedAttention(q, cache.view(this.config.layerIndex), this.#scoreOptions());
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of x and of every parameter. Parameters
   * must have x's dtype. Same errors.
   */
  vjp<D extends FloatDType>(x: Tensor<D>, options: GroupedQueryAttentionVjpOptions = {}): LayerVjp<D> {
    return scope(() => {
      checkInput(x, this.config.hiddenSize, undefined);
      checkTrainable(WHAT, x, this.parameters);
      if ("cache" in options && options.cache !== undefined) {
        throw new ArgumentError(
          `[${WHAT}] vjp takes no cache: gradients need the keys and values of this call alone`,
          { cache: true },
        );
      }
      const positions =
        typeof options.positions === "object"
          ? (options.positions.alias() as Tensor<"int32">)
          : options.positions;
      const projected = this.#project(x);
      const [q, k, v] = this.#rotate(this.#normalize(projected), positions);
      const inner = attentionVjp(q, k, v, { ...this.#scoreOptions(), ...maskOptions(options) });
      const pass: Pass = { x: x.alias(), projected, positions, inner, attended: joinHeads(inner.output) };
      const output = this.#out.forward(pass.attended as Tensor<FloatDType>)[0] as Tensor as Tensor<D>;
      const normed = this.config.qkNorm === null ? [] : projected.slice(0, 2);
      const saved = [
        pass.x,
        pass.attended,
        ...normed,
        ...(typeof positions === "object" ? [positions] : []),
        ...inner.saved,
      ];
      return layerVjp(output, saved, (dOutput) =>
        scope(() => this.#backward(pass, dOutput) as LayerGradients<D>),
      );
    });
  }
  /** The steps of vjp in reverse. Gradients are written with `=`. */
  #backward(pass: Pass, dOutput: Tensor): LayerGradients {
    const { headDim } = this.config;
    const found = new Map<string, Tensor>();
    const out = this.#out.backward(pass.attended, [dOutput]);
    const inner = pass.inner.backward(splitHeads(out.x, headDim) as Tensor<FloatDType>);
    const turned = this.#rotateBack([inner.q, inner.k] as Tensor<FloatDType>[], pass.positions);
    const qk = turned.map((d, i) => {
      if (this.config.qkNorm === null) return d;
      const g = rmsNormBackward(pass.projected[i]!, this.parameters.get(NORMS[i]!)!, d, this.config.qkNorm);
      found.set(NORMS[i]!, g.weight!);
      return g.x;
    });
    const qkv = this.#qkv.backward(pass.x, [...qk, inner.v].map(joinHeads));
    ["q_proj", "k_proj", "v_proj", "o_proj"].forEach((name, i) => {
      const { weight, bias } = [...qkv.parts, ...out.parts][i]!;
      found.set(`${name}.weight`, weight).set(`${name}.bias`, bias);
    });
    if (inner.sinks !== undefined) found.set("sinks", cast(inner.sinks, pass.x.dtype));
    const named = [...this.parameters.keys()].map((name) => [name, found.get(name)!] as const);
    return layerGradients(qkv.x as Tensor<FloatDType>, new Map(named));
  }
  /** x [..., hidden] as q [..., Hq, D], k and v [..., Hkv, D]. */
  #project(x: Tensor): Heads {
    const parts = this.#qkv.forward(x as Tensor<FloatDType>);
    return parts.map((t) => splitHeads(t, this.config.headDim)) as Tensor[] as unknown as Heads;
  }
  #normalize([q, k, v]: Heads): Heads {
    const { qkNorm } = this.config;
    if (qkNorm === null) return [q, k, v];
    return [
      rmsNorm(q, this.parameters.get(NORMS[0]), qkNorm),
      rmsNorm(k, this.parameters.get(NORMS[1]), qkNorm),
      v,
    ];
  }
  #rotate([q, k, v]: Heads, positions: Positions | undefined): Heads {
    return this.#rope === undefined
      ? [q, k, v]
      : [this.#rope.apply(q, positions), this.#rope.apply(k, positions), v];
  }
  #rotateBack(
    gradients: readonly Tensor<FloatDType>[],
    positions: Positions | undefined,
  ): readonly Tensor<FloatDType>[] {
    return this.#rope === undefined
      ? gradients
      : gradients.map((d) => this.#rope!.applyBackward(d, positions));
  }
  #scoreOptions(): ScoreOptions {
    const { isCausal, window, softcap, scale } = this.config;
    return {
      isCausal,
      window: window ?? undefined,
      softcap: softcap ?? undefined,
      scale,
      sinks: this.parameters.get("sinks"),
    };
  }
  [Symbol.dispose](): void {
    this.#qkv[Symbol.dispose]();
    this.#out[Symbol.dispose]();
    if (this.#ownsRope) this.#rope?.[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** What a forward pass leaves for its backward pass. */
interface Pass {
  readonly x: Tensor;
  readonly projected: Heads;
  readonly positions: Positions | undefined;
  readonly inner: AttentionVjp;
  readonly attended: Tensor; // [B, S, Hq * D]
}
