import {
  adopt,
  ArgumentError,
  attention,
  type AttentionOptions,
  attentionScores,
  type AttentionScoresOptions,
  attentionVjp,
  type BlockTableReader,
  cast,
  type FloatDType,
  pagedAttention,
  type ScoreOptions,
  scope,
  type Tensor,
  unscoped,
} from "@heed/tensor";
import { documentMask, maskGradient } from "./documents.ts";
import {
  checkCall,
  checkMode,
  type GroupedQueryAttentionCall,
  type GroupedQueryAttentionGradients,
  type GroupedQueryAttentionInputs,
  type GroupedQueryAttentionVjp,
  type GroupedQueryAttentionVjpOptions,
  type KeysValuesGradients,
  noCache,
} from "./gqa-call.ts";
import { HeadProjections, type HeadsPass, joinHeads, splitHeads } from "./gqa-heads.ts";
import { randomParameters } from "./gqa-init.ts";
import {
  type GroupedQueryAttentionAttributes,
  type GroupedQueryAttentionConfig,
  type GroupedQueryAttentionOptions,
  parameterShapes,
  resolveHeadConfig,
  resolveRope,
} from "./gqa-options.ts";
import { addPresent, extendGradients, keepPass, type Pass, presentOf } from "./gqa-pass.ts";
import {
  joinPast,
  type JoinedKeysValues,
  type PastKeysValues,
  positionsAfter,
  splitPast,
} from "./gqa-past.ts";
import { type InitOptions, type Layer, layerGradients } from "./layer.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { stepPositions } from "./past-check.ts";
import { Projections } from "./projections.ts";
import { type Positions, RotaryEmbedding } from "./rope.ts";

type Floats = Tensor<FloatDType>;
const WHAT = "GroupedQueryAttention";

/**
 * Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): x [B, S, hidden] is projected to Hq query
 * and Hkv key and value heads; queries and keys are normalised (optional) and rotated (optional); query head
 * h attends over key head floor(h * Hkv / Hq); the heads are projected back to [B, S, hidden]. Hkv = Hq is
 * multi-head, Hkv = 1 multi-query attention; with `contextSize` it is cross attention.
 *
 * Parameters: "q_proj.weight" [Hq * D, hidden], "k_proj.weight" and "v_proj.weight" [Hkv * D, hidden],
 * "o_proj.weight" [hidden, Hq * D], their ".bias", "q_norm.weight" and "k_norm.weight" [D] (or [Hq * D] and
 * [Hkv * D]), "sinks" [Hq], as options call for; `mergedQkv` has "qkv_proj" for the first three. Where q, k and
 * v weights are neighbours in memory, as {@link create} lays them, one matrix product serves the three.
 */
export class GroupedQueryAttention implements Layer<GroupedQueryAttentionCall> {
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #config: GroupedQueryAttentionConfig;
  readonly #heads: HeadProjections;
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
    this.#config = { ...config, rope: this.#rope?.options ?? null };
    this.#ownsRope = !(options.rope instanceof RotaryEmbedding);
    this.parameters = ownParameters(checkParameters(WHAT, parameters, parameterShapes(this.#config)));
    this.#heads = new HeadProjections(this.#config, this.parameters, this.#rope);
    const [weight, bias] = ["weight", "bias"].map((part) => this.parameters.get(`o_proj.${part}`));
    this.#out = new Projections([{ weight: weight!, bias }]);
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
  /** Whether one matrix product serves q, k and v (k and v in cross attention). */
  get isMerged(): boolean {
    return this.#heads.isMerged;
  }
  /** The options with their defaults filled in. */
  get config(): GroupedQueryAttentionConfig {
    return { ...this.#config, rope: this.#rope?.options ?? null };
  }
  attributes(): GroupedQueryAttentionAttributes {
    return { operation: WHAT, ...this.config };
  }
  /**
   * Positions are divided by `factor` from now on; see `RotaryEmbedding.scaleRope`, also for an embedding that
   * layers share. Throws ArgumentError for a factor that is not above 0, and for a layer without rotation.
   */
  scaleRope(factor: number): void {
    if (this.#rope === undefined)
      throw new ArgumentError(`[${WHAT}] scaleRope needs a layer with rope`, { factor });
    this.#rope.scaleRope(factor);
  }
  /**
   * x [B, S, hidden] to [B, S, hidden]. With a cache x may also be ragged, [T, hidden], and B * S (or T) are
   * the step's tokens. A float32 x takes 16-bit weights. Throws ShapeError, DTypeError, ArgumentError,
   * DeviceError, DisposedError, OutOfMemoryError.
   */
  forward<D extends FloatDType>(x: Tensor<D>, options: GroupedQueryAttentionCall = {}): Tensor<D> {
    return scope(() => {
      checkCall(x, options, this.#config);
      if (options.cache !== undefined) return this.#forwardPaged(x, options.cache, options.positions);
      const { q, keys, rules } = this.#prepare(x, options);
      return this.#project(attention(q, keys.k as Floats, keys.v as Floats, rules));
    }) as Tensor as Tensor<D>;
  }
  /**
   * {@link forward} without a paged cache, and all keys and values of the call, for the `past` of the next:
   * [B, P + S, Hkv, D], normalised and rotated. Copies them once; a paged cache does not. Same errors.
   */
  forwardWithPresent<D extends FloatDType>(
    x: Tensor<D>,
    options: GroupedQueryAttentionInputs = {},
  ): { readonly output: Tensor<D>; readonly present: PastKeysValues<D> } {
    return scope(() => {
      noCache("forwardWithPresent", options);
      checkCall(x, options, this.#config);
      const { q, keys, rules } = this.#prepare(x, options);
      const output = this.#project(attention(q, keys.k as Floats, keys.v as Floats, rules));
      return { output: output as Tensor as Tensor<D>, present: presentOf<D>(keys) };
    });
  }
  /**
   * Keys and values of a context [B, Sk, contextSize] alone, for the `past` of calls of cross attention that
   * share it. Throws ArgumentError without `contextSize`, and as {@link forward}.
   */
  contextKeysValues<D extends FloatDType>(
    context: Tensor<D>,
    options: { readonly positions?: Positions | undefined } = {},
  ): PastKeysValues<D> {
    return scope(() => {
      if (this.#config.contextSize === null)
        throw new ArgumentError(`[${WHAT}] contextKeysValues needs a layer with contextSize`, {});
      const { k, v } = this.#heads.keysValues(context, options.positions ?? 0);
      return { k, v } as unknown as PastKeysValues<D>;
    });
  }
  /**
   * The scores of a call at one stage, by default the probabilities: [B, Hq, S, Sk], float32 (float64 for
   * float64). For inspection: it takes memory of that size. Same errors as {@link forward}.
   */
  scores(
    x: Tensor,
    options: GroupedQueryAttentionInputs & Pick<AttentionScoresOptions, "stage" | "softmaxDtype"> = {},
  ): Tensor {
    return scope(() => {
      noCache("scores", options);
      checkCall(x, options, this.#config);
      const { q, keys, rules } = this.#prepare(x, options);
      const { stage, softmaxDtype } = options;
      return attentionScores(q, keys.k as Floats, keys.v as Floats, { ...rules, stage, softmaxDtype }).scores;
    });
  }
  #forwardPaged(x: Tensor, cache: BlockTableReader, positions: Positions | undefined): Floats {
    const { hiddenSize, layerIndex } = this.#config;
    const rows = x.contiguous().reshape([cache.positions.size, hiddenSize]); // [T, hidden]
    const at = stepPositions(WHAT, cache, positions);
    const q = this.#heads.forwardInto(cache, layerIndex, rows, at);
    const attended = pagedAttention(q, cache.view(layerIndex), this.#scoreOptions());
    return this.#project(attended).reshape(x.shape) as Floats;
  }
  /** Attended heads [..., Hq, D] as [..., hidden]. */
  #project(attended: Floats): Floats {
    return this.#out.forward(joinHeads(attended))[0]!;
  }
  /** Queries, all keys and values, and the rules under which they meet. */
  #prepare(x: Tensor, o: GroupedQueryAttentionInputs): Prepared {
    const { past, context, attnMask } = o;
    const isCross = this.#config.contextSize !== null;
    const at = { x: o.positions ?? this.#defaultPositions(x, past), context: o.contextPositions ?? 0 };
    const { q, k, v, pass } = this.#heads.forward(x, context, at);
    const documents = isCross ? o.contextDocuments : o.documents;
    const keys = joinPast(past, k && v && { k, v, lengths: o.kvLengths, documents });
    const rules = {
      ...this.#scoreOptions(),
      attnMask: o.documents === undefined ? attnMask : documentMask(o.documents, keys.documents!, attnMask),
      kvLengths: keys.lengths,
      // Query i is token i of x whatever `kvLengths` says.
      queryOffset: isCross || past === undefined ? 0 : (past.lengths ?? keys.pastRows),
    };
    return { q, keys, rules, pass };
  }
  /** x's tokens follow the past; a context has no say. */
  #defaultPositions(x: Tensor, past: PastKeysValues | undefined): Positions {
    if (past === undefined || this.#rope === undefined || this.#config.contextSize !== null) return 0;
    return positionsAfter(past.lengths ?? past.k.shape[1]!, x.shape[1]!);
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of x, of every parameter, and of the
   * context and the past. Parameters must have x's dtype. Same errors.
   */
  vjp<D extends FloatDType>(
    x: Tensor<D>,
    options: GroupedQueryAttentionVjpOptions = {},
  ): GroupedQueryAttentionVjp<D> {
    return scope(() => {
      noCache("vjp", options);
      checkMode(options);
      checkCall(x, options, this.#config);
      checkTrainable(WHAT, x, this.parameters);
      const { q, keys, rules, pass: heads } = this.#prepare(x, options);
      const { attnMaskGradient, dropout } = options;
      const training = { ...rules, attnMaskGradient, dropout };
      const inner = attentionVjp(q, keys.k as Floats, keys.v as Floats, training);
      const attended = joinHeads(inner.output);
      const output = this.#out.forward(attended)[0]!;
      const present = presentOf<D>(keys);
      const { pass, saved: own } = keepPass(
        { heads, keys, inner, attended, mask: options.attnMask },
        this.#config.qkNorm !== null,
        options,
      );
      const saved = [...own, ...Object.values(present)];
      return {
        output: output as Tensor as Tensor<D>,
        present,
        saved,
        backward: (dOutput, dPresent) =>
          scope(() => this.#backward(pass, dOutput, dPresent) as GroupedQueryAttentionGradients<D>),
        [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
      };
    });
  }
  /** The steps of vjp in reverse. Gradients are written with `=`. */
  #backward(
    pass: Pass,
    dOutput: Tensor,
    dPresent: KeysValuesGradients | undefined,
  ): GroupedQueryAttentionGradients {
    const out = this.#out.backward(pass.attended, [dOutput]);
    const inner = pass.inner.backward(splitHeads(out.x, this.#config.headDim));
    const [dk, dv] = (["k", "v"] as const).map((name) =>
      splitPast(addPresent(WHAT, inner[name], name, dPresent), pass.keys),
    );
    const isFresh = pass.heads.k !== undefined;
    const heads = this.#heads.backward(pass.heads, {
      q: inner.q as Floats,
      k: isFresh ? (dk!.fresh as Floats) : undefined,
      v: isFresh ? (dv!.fresh as Floats) : undefined,
    });
    const found = heads.parameters;
    found.set("o_proj.weight", out.parts[0]!.weight).set("o_proj.bias", out.parts[0]!.bias);
    if (inner.sinks !== undefined) found.set("sinks", cast(inner.sinks, pass.heads.x.dtype));
    const named = [...this.parameters.keys()].map((name) => [name, found.get(name)!] as const);
    return extendGradients(layerGradients(heads.x as Floats, new Map(named)), {
      ...(heads.context && { context: heads.context as Floats }),
      ...(pass.full && { past: { k: dk!.past.contiguous() as Floats, v: dv!.past.contiguous() as Floats } }),
      ...(pass.mask && { attnMask: maskGradient(inner.attnMask!, pass.mask) }),
    });
  }
  #scoreOptions(): ScoreOptions {
    const { isCausal, window, sinkTokens, softcap, scale } = this.#config;
    return {
      isCausal,
      window: window ?? undefined,
      sinkTokens,
      softcap: softcap ?? undefined,
      scale,
      sinks: this.parameters.get("sinks"),
    };
  }
  [Symbol.dispose](): void {
    this.#heads[Symbol.dispose]();
    this.#out[Symbol.dispose]();
    if (this.#ownsRope) this.#rope?.[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** What attends in one call. */
interface Prepared {
  readonly q: Floats; // [B, S, Hq, D]
  readonly keys: JoinedKeysValues; // [B, Sk, Hkv, D]
  readonly rules: AttentionOptions;
  readonly pass: HeadsPass;
}
