import {
  adopt,
  allocate,
  ArgumentError,
  attention,
  type AttentionOptions,
  attentionScores,
  type AttentionScoresOptions,
  attentionVjp,
  type BlockTableReader,
  concat,
  copyInto,
  type FloatDType,
  matmul,
  pagedAttention,
  type PagedView,
  type Pages,
  scope,
  type Tensor,
  unscoped,
} from "@heed/tensor";
import { documentMask, maskGradient } from "./documents.ts";
import { joinHeads, splitHeads } from "./gqa-heads.ts";
import { positionsAfter } from "./gqa-past.ts";
import { type InitOptions, type Layer, layerGradients } from "./layer.ts";
import {
  checkLatentCall,
  checkLatentMethod,
  checkLatentView,
  expandedRows,
  type MultiHeadLatentAttentionCall,
  type MultiHeadLatentAttentionInputs,
  type MultiHeadLatentAttentionVjpOptions,
} from "./mla-call.ts";
import { type ExpandedRows, LatentProjections, type LatentRows, type LatentRowsPass } from "./mla-heads.ts";
import {
  type LatentConfig,
  latentParameterShapes,
  type MultiHeadLatentAttentionAttributes,
  type MultiHeadLatentAttentionConfig,
  type MultiHeadLatentAttentionOptions,
  randomLatentParameters,
  resolveLatentConfig,
  resolveLatentRope,
} from "./mla-options.ts";
import {
  extendLatentGradients,
  type JoinedLatentRows,
  joinLatentRows,
  keepLatentPass,
  type LatentPass,
  type LatentRowsGradients,
  type MultiHeadLatentAttentionGradients,
  type MultiHeadLatentAttentionVjp,
  type PastLatentRows,
  presentRows,
  splitRows,
} from "./mla-past.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { stepPositions } from "./past-check.ts";
import { Projections } from "./projections.ts";
import { type Positions, RotaryEmbedding } from "./rope.ts";

type Floats = Tensor<FloatDType>;
const WHAT = "MultiHeadLatentAttention";

/** out [T, H, n] = x [T, H, m] @ weight [H, m, n], head by head. */
function perHead(x: Floats, weight: Tensor, out: Floats): void {
  matmul(x.transpose(0, 1) as Floats, weight as Floats, { out: out.transpose(0, 1) });
}
/**
 * Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434; DeepSeek-V3, arXiv:2412.19437). x [B, S, hidden] becomes, for each
 * token, one latent row c of kvLoraRank numbers, normalised, and one rotary key r that all heads share; head h has the key
 * [Wk_h c, r] and the value Wv_h c. Queries come from x in one map, or through a normalised row of qLoraRank numbers; their last
 * qkRopeHeadDim components turn.
 *
 * Without a cache, and for sequences that begin with a step of one, keys and values are expanded. Else the form is absorbed: since q . Wk c = (Wk^T q) . c, queries go into the
 * latent space, attend over the rows [c, r] themselves, of which c is the value too, and Wv is applied to what comes out. The cache
 * then keeps kvLoraRank + qkRopeHeadDim numbers a token.
 *
 * Parameters, as Hugging Face has them: "q_proj.weight" [H * (Dn + Dr), hidden]; or "q_a_proj.weight" [Rq, hidden],
 * "q_a_layernorm.weight" [Rq], "q_b_proj.weight" [H * (Dn + Dr), Rq]; "kv_a_proj_with_mqa.weight" [R + Dr, hidden],
 * "kv_a_layernorm.weight" [R], "kv_b_proj.weight" [H * (Dn + Dv), R], "o_proj.weight" [hidden, H * Dv]; with `bias` the ".bias" of
 * q_a, kv_a and o.
 */
export class MultiHeadLatentAttention implements Layer<MultiHeadLatentAttentionCall> {
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #config: LatentConfig;
  readonly #heads: LatentProjections;
  readonly #out: Projections;
  readonly #rope: RotaryEmbedding | undefined;
  readonly #ownsRope: boolean;

  /**
   * A layer over given parameters, whose memory it shares. Throws ArgumentError (a bad option; a parameter that is missing or unknown),
   * ShapeError, DTypeError, DeviceError, DisposedError, which name the parameter.
   */
  constructor(options: MultiHeadLatentAttentionOptions, parameters: Parameters) {
    const config = resolveLatentConfig(options);
    this.#rope = unscoped(() => resolveLatentRope(options));
    this.#config = config;
    this.#ownsRope = !(options.rope instanceof RotaryEmbedding);
    this.parameters = ownParameters(checkParameters(WHAT, parameters, latentParameterShapes(config)));
    this.#heads = new LatentProjections(config, this.parameters, this.#rope);
    const [weight, bias] = ["weight", "bias"].map((part) => this.parameters.get(`o_proj.${part}`));
    this.#out = new Projections([{ weight: weight!, bias }]);
    adopt(this);
  }
  /** The constructor under the name that says what it does; `options` may be another layer's attributes. */
  static fromParameters(
    options: MultiHeadLatentAttentionOptions,
    parameters: Parameters,
  ): MultiHeadLatentAttention {
    return new MultiHeadLatentAttention(options, parameters);
  }
  /** A layer with random parameters; see {@link InitOptions}. Throws ArgumentError, OutOfMemoryError. */
  static create(options: MultiHeadLatentAttentionOptions & InitOptions): MultiHeadLatentAttention {
    return scope(
      () =>
        new MultiHeadLatentAttention(options, randomLatentParameters(resolveLatentConfig(options), options)),
    );
  }
  /** The options with their defaults filled in. */
  get config(): MultiHeadLatentAttentionConfig {
    return { ...this.#config, rope: this.#rope?.options ?? null };
  }
  attributes(): MultiHeadLatentAttentionAttributes {
    return { operation: WHAT, ...this.config };
  }
  /**
   * Positions are divided by `factor` from now on; see `RotaryEmbedding.scaleRope`, also for an embedding that layers share. Throws
   * ArgumentError for a factor that is not above 0, and for a layer without rotation.
   */
  scaleRope(factor: number): void {
    if (this.#rope === undefined)
      throw new ArgumentError(`[${WHAT}] scaleRope needs a layer with rope`, { factor });
    this.#rope.scaleRope(factor);
  }
  /** What a cache for this layer must look like, as options of `KvCache`: one key head, whose rows hold the values. */
  get cacheLayout(): {
    readonly numKvHeads: 1;
    readonly headDim: number;
    readonly valueHeadDim: number;
    readonly valuesInKeys: true;
  } {
    const { kvLoraRank, qkRopeHeadDim } = this.#config;
    return {
      numKvHeads: 1,
      headDim: kvLoraRank + qkRopeHeadDim,
      valueHeadDim: kvLoraRank,
      valuesInKeys: true,
    };
  }
  /**
   * x [B, S, hidden] to [B, S, hidden]. With a cache x may also be ragged, [T, hidden], and B * S (or T) are the step's tokens. A
   * float32 x takes 16-bit weights. Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError, OutOfMemoryError.
   */
  forward<D extends FloatDType>(x: Tensor<D>, options: MultiHeadLatentAttentionCall = {}): Tensor<D> {
    return scope(() => {
      checkLatentCall(x, options, this.#config);
      const { cache } = options;
      if (cache !== undefined) return this.#project(this.#attendPaged(x, cache, options)).reshape(x.shape);
      const { q, k, v, rules } = this.#prepare(x, options);
      return this.#project(attention(q, k, v, rules));
    }) as Tensor as Tensor<D>;
  }
  /**
   * {@link forward} without a paged cache, and all rows of the call, for the `past` of the next: [B, P + S, R] and [B, P + S, Dr]. Same
   * errors.
   */
  forwardWithPresent<D extends FloatDType>(
    x: Tensor<D>,
    options: MultiHeadLatentAttentionInputs = {},
  ): { readonly output: Tensor<D>; readonly present: PastLatentRows<D> } {
    return scope(() => {
      checkLatentMethod("forwardWithPresent", options);
      checkLatentCall(x, options, this.#config);
      const { q, k, v, rules, rows } = this.#prepare(x, options);
      const output = this.#project(attention(q, k, v, rules));
      return { output: output as Tensor as Tensor<D>, present: presentRows<D>(rows) };
    });
  }
  /**
   * The scores of a call at one stage, by default the probabilities: [B, H, S, Sk], float32 (float64 for float64). For inspection: it
   * takes memory of that size. Same errors as {@link forward}.
   */
  scores(
    x: Tensor,
    options: MultiHeadLatentAttentionInputs & Pick<AttentionScoresOptions, "stage" | "softmaxDtype"> = {},
  ): Tensor {
    return scope(() => {
      checkLatentMethod("scores", options);
      checkLatentCall(x, options, this.#config);
      const { q, k, v, rules } = this.#prepare(x, options);
      const { stage, softmaxDtype } = options;
      return attentionScores(q, k, v, { ...rules, stage, softmaxDtype }).scores;
    });
  }
  /** Attended heads [..., H, Dv] as [..., hidden]. */
  #project(attended: Tensor): Floats {
    return this.#out.forward(joinHeads(attended))[0]!;
  }
  /** Queries, keys and values of every head, and the rules under which they meet. */
  #prepare(x: Tensor, o: MultiHeadLatentAttentionInputs): Prepared {
    const { past, documents, attnMask } = o;
    const { isCausal, scale } = this.#config;
    const { q, latent, rotaryKey, pass } = this.#heads.forward(x, o.positions ?? this.#follow(x, past));
    const rows = joinLatentRows(past, { latent, rotaryKey, lengths: o.kvLengths, documents });
    const rules = {
      isCausal,
      scale,
      attnMask: documents === undefined ? attnMask : documentMask(documents, rows.documents!, attnMask),
      kvLengths: rows.lengths,
      // Query i is token i of x whatever `kvLengths` says.
      queryOffset: past === undefined ? 0 : (past.lengths ?? rows.pastRows),
    };
    return { q, ...this.#heads.expand(rows.latent, rows.rotaryKey), rows, rules, pass };
  }
  /** Where x's tokens stand by default: after the past. */
  #follow(x: Tensor, past: PastLatentRows | undefined): Positions {
    if (past === undefined || this.#rope === undefined) return 0;
    return positionsAfter(past.lengths ?? past.latent.shape[1]!, x.shape[1]!);
  }
  /** Writes the new rows and attends: [T, H, Dv]. */
  #attendPaged(
    x: Tensor,
    cache: BlockTableReader,
    { expand, positions }: Pick<MultiHeadLatentAttentionCall, "expand" | "positions">,
  ): Tensor {
    const { hiddenSize, layerIndex } = this.#config;
    const rows = x.contiguous().reshape([cache.positions.size, hiddenSize]); // [T, hidden]
    const own = this.#heads.forward(rows, stepPositions(WHAT, cache, positions));
    cache.write(layerIndex, concat([own.latent, own.rotaryKey], -1).unsqueeze(1)); // [T, 1, R + Dr]
    const view = cache.view(layerIndex);
    checkLatentView(view, this.#config);
    const ranges = expandedRows(view.table, expand);
    return ranges === undefined ? this.#absorbed(own.q, view) : this.#fromStart(own, ranges);
  }
  /** Sequences whose rows are all in this step, in expanded form. */
  #fromStart({ q, latent, rotaryKey }: LatentRows, rows: readonly number[]): Tensor {
    const { isCausal, scale } = this.#config;
    const { k, v } = this.#heads.expand(latent, rotaryKey);
    const out = allocate(q.engine, q.dtype, [...v.shape]); // [T, H, Dv]
    for (let n = 0; n + 1 < rows.length; n++) {
      const part = (t: Tensor): Floats => t.slice(0, rows[n]!, rows[n + 1]!).unsqueeze(0) as Floats;
      if (rows[n + 1]! > rows[n]!)
        copyInto(attention(part(q), part(k), part(v), { isCausal, scale, queryOffset: 0 }), part(out));
    }
    return out;
  }
  /** Queries, rotated, over the latent rows themselves. */
  #absorbed(q: Floats, view: PagedView<Pages>): Tensor {
    const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.#config;
    const T = q.shape[0]!;
    const kvB = this.parameters
      .get("kv_b_proj.weight")!
      .reshape([numHeads, qkNopeHeadDim + vHeadDim, kvLoraRank]);
    const query = allocate(q.engine, q.dtype, [T, numHeads, kvLoraRank + qkRopeHeadDim]) as Floats;
    perHead(
      q.slice(-1, 0, qkNopeHeadDim) as Floats,
      kvB.slice(1, 0, qkNopeHeadDim), // [H, Dn, R]
      query.slice(-1, 0, kvLoraRank) as Floats,
    );
    copyInto(q.slice(-1, qkNopeHeadDim), query.slice(-1, kvLoraRank));
    const { isCausal, scale } = this.#config;
    const attended = pagedAttention(query, view, { isCausal, scale }); // [T, H, R]
    const values = allocate(q.engine, q.dtype, [T, numHeads, vHeadDim]) as Floats;
    perHead(attended, kvB.slice(1, qkNopeHeadDim).transpose(), values); // [H, R, Dv]
    return values;
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of x, of every parameter, and of the past. Parameters must have
   * x's dtype. Same errors.
   */
  vjp<D extends FloatDType>(
    x: Tensor<D>,
    options: MultiHeadLatentAttentionVjpOptions = {},
  ): MultiHeadLatentAttentionVjp<D> {
    return scope(() => {
      checkLatentMethod("vjp", options);
      checkLatentCall(x, options, this.#config);
      checkTrainable(WHAT, x, this.parameters);
      const { q, k, v, rules, rows, pass: own } = this.#prepare(x, options);
      const { attnMaskGradient, dropout } = options;
      const inner = attentionVjp(q, k, v, { ...rules, attnMaskGradient, dropout });
      const attended = joinHeads(inner.output);
      const output = this.#out.forward(attended)[0]!;
      const present = presentRows<D>(rows);
      const kept = keepLatentPass({ own, rows, inner, attended, mask: options.attnMask }, options);
      const saved = [...kept.saved, ...Object.values(present)];
      return {
        output: output as Tensor as Tensor<D>,
        present,
        saved,
        backward: (dOutput, dPresent) =>
          scope(() => this.#backward(kept.pass, dOutput, dPresent) as MultiHeadLatentAttentionGradients<D>),
        [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
      };
    });
  }
  /** The steps of vjp in reverse. Gradients are written with `=`. */
  #backward(
    { own, rows, inner, attended, mask, full }: LatentPass,
    dOutput: Tensor,
    dPresent: LatentRowsGradients | undefined,
  ): MultiHeadLatentAttentionGradients {
    const found = new Map<string, Tensor>();
    const out = this.#out.backward(attended, [dOutput]);
    found.set("o_proj.weight", out.parts[0]!.weight).set("o_proj.bias", out.parts[0]!.bias);
    const d = inner.backward(splitHeads(out.x, this.#config.vHeadDim));
    const all = this.#heads.expandBackward(rows.latent, d, found);
    const latent = splitRows(all.latent, "latent", dPresent, rows);
    const rotaryKey = splitRows(all.rotaryKey, "rotaryKey", dPresent, rows);
    const fresh = { latent: latent.fresh as Floats, rotaryKey: rotaryKey.fresh as Floats };
    const dx = this.#heads.backward(own, { q: d.q as Floats, ...fresh }, found);
    const named = [...this.parameters.keys()].map((name) => [name, found.get(name)!] as const);
    const past = {
      latent: latent.past.contiguous() as Floats,
      rotaryKey: rotaryKey.past.contiguous() as Floats,
    };
    return extendLatentGradients(layerGradients(dx as Floats, new Map(named)), {
      ...(full && { past }),
      ...(mask && { attnMask: maskGradient(d.attnMask!, mask) }),
    });
  }
  [Symbol.dispose](): void {
    this.#heads[Symbol.dispose]();
    this.#out[Symbol.dispose]();
    if (this.#ownsRope) this.#rope?.[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** What attends in one call. */
interface Prepared extends ExpandedRows {
  readonly q: Floats; // [B, S, H, Dn + Dr]
  readonly rows: JoinedLatentRows;
  readonly rules: AttentionOptions;
  readonly pass: LatentRowsPass;
}
