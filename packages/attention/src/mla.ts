import {
  adopt,
  allocate,
  ArgumentError,
  attention,
  type AttentionOptions,
  type AttentionVjp,
  attentionVjp,
  type BlockTableReader,
  concat,
  copyInto,
  type FloatDType,
  linear,
  matmul,
  pagedAttention,
  type PagedView,
  rmsNorm,
  rmsNormBackward,
  scope,
  sum,
  type Tensor,
  unscoped,
} from "@heed/tensor";
import { joinHeads, splitHeads } from "./gqa-heads.ts";
import {
  type InitOptions,
  type Layer,
  type LayerGradients,
  layerGradients,
  type LayerVjp,
  layerVjp,
} from "./layer.ts";
import {
  checkLatentCall,
  checkLatentInput,
  checkLatentView,
  expandedRows,
  type MultiHeadLatentAttentionCall,
  type MultiHeadLatentAttentionInputs,
  type MultiHeadLatentAttentionVjpOptions,
} from "./mla-call.ts";
import {
  latentParameterShapes,
  type MultiHeadLatentAttentionAttributes,
  type MultiHeadLatentAttentionConfig,
  type MultiHeadLatentAttentionOptions,
  queryInput,
  randomLatentParameters,
  resolveLatentConfig,
  resolveLatentRope,
} from "./mla-options.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { Projections } from "./projections.ts";
import { type Positions, RotaryEmbedding } from "./rope.ts";

type Float = Tensor<FloatDType>;
const WHAT = "MultiHeadLatentAttention";

/** out [T, H, n] = x [T, H, m] @ weight [H, m, n], head by head. */
function perHead(x: Float, weight: Tensor, out: Float): void {
  if (x.dtype === weight.dtype) {
    matmul(x.transpose(0, 1) as Float, weight as Float, { out: out.transpose(0, 1) });
    return;
  }
  // 16-bit weights beside a float32 x are read as they are by `linear` alone.
  for (let h = 0; h < weight.shape[0]!; h++)
    copyInto(linear(x.select(1, h), weight.select(0, h).transpose()), out.select(1, h));
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
  readonly #config: Omit<MultiHeadLatentAttentionConfig, "rope">;
  readonly #input: Projections; // x to the queries (or their latent row) and to [c, r] before norm and rotation
  readonly #query: Projections | undefined; // the queries' latent row to the queries
  readonly #expand: Projections; // c to keys and values
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
    const project = (...names: string[]): Projections =>
      new Projections(
        names.map((name) => ({
          weight: this.parameters.get(`${name}.weight`)!,
          bias: this.parameters.get(`${name}.bias`),
        })),
      );
    this.#input = project(queryInput(config), "kv_a_proj_with_mqa");
    this.#query = config.qLoraRank === null ? undefined : project("q_b_proj");
    this.#expand = project("kv_b_proj");
    this.#out = project("o_proj");
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
      const { cache } = options;
      checkLatentInput(x, this.#config.hiddenSize, cache);
      checkLatentCall(options);
      const attended =
        cache === undefined ? this.#attend(x, options) : this.#attendPaged(x, cache, options.expand);
      return this.#out.forward(joinHeads(attended))[0]!.reshape(x.shape) as Tensor as Tensor<D>;
    });
  }
  #attend(x: Tensor, options: MultiHeadLatentAttentionInputs): Tensor {
    const { q, k, v } = this.#expanded(x, options.positions);
    return attention(q, k, v, this.#scores(options));
  }
  /** Writes the new rows and attends: [T, H, Dv]. */
  #attendPaged(x: Tensor, cache: BlockTableReader, expand: boolean | undefined): Tensor {
    const { hiddenSize, layerIndex } = this.#config;
    const { positions } = cache;
    const { projected, q } = this.#project(x.contiguous().reshape([positions.size, hiddenSize]));
    const { latent, sharedKey } = this.#compress(projected[1], positions);
    cache.write(layerIndex, concat([latent.unsqueeze(1) as Float, sharedKey], -1)); // [T, 1, R + Dr]
    const view = cache.view(layerIndex);
    checkLatentView(view, this.#config);
    this.#turnIn(q, positions);
    const rows = expandedRows(view.table, expand);
    return rows === undefined ? this.#absorbed(q, view) : this.#fromStart(q, latent, sharedKey, rows);
  }
  /** Sequences whose rows are all in this step, in expanded form. */
  #fromStart(q: Float, latent: Float, sharedKey: Float, rows: readonly number[]): Tensor {
    const { k, v } = this.#keysValues(latent, sharedKey);
    const out = allocate(q.engine, q.dtype, [...v.shape]); // [T, H, Dv]
    for (let n = 0; n + 1 < rows.length; n++) {
      const part = (t: Tensor): Float => t.slice(0, rows[n]!, rows[n + 1]!).unsqueeze(0) as Float;
      if (rows[n + 1]! > rows[n]!)
        copyInto(attention(part(q), part(k), part(v), this.#scores({})), part(out));
    }
    return out;
  }
  /** Queries, rotated, over the latent rows themselves. */
  #absorbed(q: Float, view: PagedView): Tensor {
    const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.#config;
    const T = q.shape[0]!;
    const kvB = this.parameters
      .get("kv_b_proj.weight")!
      .reshape([numHeads, qkNopeHeadDim + vHeadDim, kvLoraRank]);
    const query = allocate(q.engine, q.dtype, [T, numHeads, kvLoraRank + qkRopeHeadDim]) as Float;
    perHead(
      q.slice(-1, 0, qkNopeHeadDim) as Float,
      kvB.slice(1, 0, qkNopeHeadDim), // [H, Dn, R]
      query.slice(-1, 0, kvLoraRank) as Float,
    );
    copyInto(q.slice(-1, qkNopeHeadDim), query.slice(-1, kvLoraRank));
    const { isCausal, scale } = this.#config;
    const attended = pagedAttention(query, view, { isCausal, scale }); // [T, H, R]
    const values = allocate(q.engine, q.dtype, [T, numHeads, vHeadDim]) as Float;
    perHead(attended, kvB.slice(1, qkNopeHeadDim).transpose(), values); // [H, R, Dv]
    return values;
  }
  /** {@link forward} with its backward pass, which gives the gradients of x and of every parameter. Parameters must have x's dtype. Same errors. */
  vjp<D extends FloatDType>(x: Tensor<D>, options: MultiHeadLatentAttentionVjpOptions = {}): LayerVjp<D> {
    return scope(() => {
      checkLatentInput(x, this.#config.hiddenSize, undefined);
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
      const { q, k, v, ...rows } = this.#expanded(x, positions);
      const inner = attentionVjp(q, k, v, { ...this.#scores(options), dropout: options.dropout });
      const pass: Pass = { ...rows, x: x.alias(), positions, inner, attended: joinHeads(inner.output) };
      const output = this.#out.forward(pass.attended)[0] as Tensor as Tensor<D>;
      const saved = [
        pass.x,
        pass.attended,
        pass.latent,
        ...(pass.queryRow === undefined ? pass.projected.slice(1) : [...pass.projected, pass.queryRow]),
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
    const { kvLoraRank, qkNopeHeadDim, vHeadDim, normEps } = this.#config;
    const { projected, latent, positions } = pass;
    const found = new Map<string, Tensor>();
    const keep = (name: string, g: { readonly weight: Tensor; readonly bias: Tensor }): void =>
      void found.set(`${name}.weight`, g.weight).set(`${name}.bias`, g.bias);
    const norm = (name: string, x: Tensor, dOut: Tensor): Tensor => {
      const g = rmsNormBackward(x, this.parameters.get(`${name}.weight`), dOut, { eps: normEps });
      found.set(`${name}.weight`, g.weight!);
      return g.x;
    };
    const out = this.#out.backward(pass.attended, [dOutput]);
    keep("o_proj", out.parts[0]!);
    const d = pass.inner.backward(splitHeads(out.x, vHeadDim));

    const expand = this.#expand.backward(latent, [
      joinHeads(concat([d.k.slice(-1, 0, qkNopeHeadDim), d.v], -1)),
    ]);
    keep("kv_b_proj", expand.parts[0]!);
    const dShared = sum(d.k.slice(-1, qkNopeHeadDim) as Float, { axes: [2], keepDims: true }); // [B, S, 1, Dr]
    const dCompressed = concat(
      [
        norm("kv_a_layernorm", projected[1].slice(-1, 0, kvLoraRank), expand.x),
        joinHeads(this.#turnBack(dShared, positions)),
      ],
      -1,
    );
    const turning = d.q.slice(-1, qkNopeHeadDim) as Float;
    if (this.#rope !== undefined) copyInto(this.#turnBack(turning, positions), turning);
    let dQuery: Tensor = joinHeads(d.q);
    if (this.#query !== undefined) {
      const query = this.#query.backward(pass.queryRow!, [dQuery]);
      keep("q_b_proj", query.parts[0]!);
      dQuery = norm("q_a_layernorm", projected[0], query.x);
    }
    const input = this.#input.backward(pass.x, [dQuery, dCompressed]);
    [queryInput(this.#config), "kv_a_proj_with_mqa"].forEach((name, i) => keep(name, input.parts[i]!));
    const named = [...this.parameters.keys()].map((name) => [name, found.get(name)!] as const);
    return layerGradients(input.x as Float, new Map(named));
  }
  /** Queries, keys and values of every head, rotated, and the rows that they come from. */
  #expanded(x: Tensor, positions: Positions | undefined): Rows & { q: Float; k: Float; v: Float } {
    const rows = this.#project(x);
    const { latent, sharedKey } = this.#compress(rows.projected[1], positions);
    this.#turnIn(rows.q, positions);
    return { ...rows, latent, ...this.#keysValues(latent, sharedKey) };
  }
  /** Keys [..., H, Dn + Dr] and values [..., H, Dv] of every head. */
  #keysValues(latent: Float, sharedKey: Float): { k: Float; v: Float } {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.#config;
    const kv = splitHeads(this.#expand.forward(latent)[0]!, qkNopeHeadDim + vHeadDim); // [..., H, Dn + Dv]
    const shared = sharedKey.broadcastTo([...kv.shape.slice(0, -2), numHeads, qkRopeHeadDim]);
    return {
      k: concat([kv.slice(-1, 0, qkNopeHeadDim), shared as Float], -1),
      v: kv.slice(-1, qkNopeHeadDim) as Float,
    };
  }
  /** x [..., hidden] to queries [..., H, Dn + Dr], not rotated, and what they and the latent row come from. */
  #project(x: Tensor): Omit<Rows, "latent"> & { q: Float } {
    const projected = this.#input.forward(x as Float) as [Float, Float];
    const D = this.#config.qkNopeHeadDim + this.#config.qkRopeHeadDim;
    if (this.#query === undefined) return { projected, queryRow: undefined, q: splitHeads(projected[0], D) };
    const queryRow = this.#norm("q_a_layernorm", projected[0]);
    return { projected, queryRow, q: splitHeads(this.#query.forward(queryRow)[0]!, D) };
  }
  /** The latent row [..., R], normalised, and the shared key [..., 1, Dr], rotated, of rows [..., R + Dr]. */
  #compress(rows: Float, positions: Positions | undefined): { latent: Float; sharedKey: Float } {
    const { kvLoraRank } = this.#config;
    return {
      latent: this.#norm("kv_a_layernorm", rows.slice(-1, 0, kvLoraRank) as Float),
      sharedKey: this.#turn(rows.slice(-1, kvLoraRank).unsqueeze(-2) as Float, positions),
    };
  }
  #norm(name: string, x: Float): Float {
    return rmsNorm(x, this.parameters.get(`${name}.weight`), { eps: this.#config.normEps });
  }
  /** Rotates the last Dr components of each head of q, in place: q is this call's own. */
  #turnIn(q: Float, positions: Positions | undefined): void {
    const turning = q.slice(-1, this.#config.qkNopeHeadDim) as Float;
    if (this.#rope !== undefined) copyInto(this.#turn(turning, positions), turning);
  }
  #turn(x: Float, positions: Positions | undefined): Float {
    return this.#rope === undefined ? x : this.#rope.apply(x, positions);
  }
  #turnBack(dOut: Float, positions: Positions | undefined): Float {
    return this.#rope === undefined ? dOut : this.#rope.applyBackward(dOut, positions);
  }
  /** Query i is token i whatever `kvLengths` says, so positions of the mask start at 0. */
  #scores({ attnMask, kvLengths }: MultiHeadLatentAttentionInputs): AttentionOptions {
    const { isCausal, scale } = this.#config;
    return { isCausal, scale, attnMask, kvLengths, queryOffset: 0 };
  }
  [Symbol.dispose](): void {
    for (const part of [this.#input, this.#query, this.#expand, this.#out]) part?.[Symbol.dispose]();
    if (this.#ownsRope) this.#rope?.[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** Rows that a forward pass computes on its way. */
interface Rows {
  readonly projected: readonly [query: Float, compressed: Float]; // [B, S, Rq] or [B, S, H * (Dn + Dr)]; [B, S, R + Dr]
  readonly queryRow: Float | undefined; // [B, S, Rq], normalised
  readonly latent: Float; // [B, S, R], normalised
}
/** What a forward pass leaves for its backward pass. */
interface Pass extends Rows {
  readonly x: Tensor;
  readonly positions: Positions | undefined;
  readonly inner: AttentionVjp;
  readonly attended: Float; // [B, S, H * Dv]
}
