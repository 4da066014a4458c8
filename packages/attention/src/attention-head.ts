import {
  adopt,
  attention,
  type AttentionOptions,
  type AttentionVjp,
  attentionVjp,
  type BlockTableReader,
  type FloatDType,
  pagedAttention,
  randn,
  scope,
  type Shape,
  type Tensor,
  zeros,
} from "@heed/tensor";
import {
  type AttentionHeadCall,
  type AttentionHeadGradients,
  type AttentionHeadInputs,
  type AttentionHeadVjp,
  type AttentionHeadVjpOptions,
  checkHeadCall,
  checkHeadTraining,
  checkUpstream,
} from "./attention-head-call.ts";
import { wholeNumber } from "./check.ts";
import { maskGradient } from "./documents.ts";
import type { KeysValuesGradients } from "./gqa-call.ts";
import { addPresent, extendGradients, presentOf } from "./gqa-pass.ts";
import { joinPast, type JoinedKeysValues, type PastKeysValues, splitPast } from "./gqa-past.ts";
import { INIT_STD, type InitOptions, type Layer, type LayerAttributes, layerGradients } from "./layer.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { Projections } from "./projections.ts";

export type {
  AttentionHeadCall,
  AttentionHeadGradients,
  AttentionHeadInputs,
  AttentionHeadVjp,
  AttentionHeadVjpOptions,
} from "./attention-head-call.ts";

/** Options of {@link AttentionHead}. */
export interface AttentionHeadOptions {
  /** Size of a token's row in the input. */
  readonly hiddenSize: number;
  /** Size D of the head's queries, keys and values, and of a token's row in the output. */
  readonly headDim: number;
  /** Biases of the three projections. Default false. */
  readonly bias?: boolean | undefined;
  /** A token sees itself and those before it. Default true. */
  readonly isCausal?: boolean | undefined;
  /** Which layer of a cache this head reads and writes. Default 0. */
  readonly layerIndex?: number | undefined;
}
/** Attributes of {@link AttentionHead}. */
export interface AttentionHeadAttributes extends LayerAttributes, AttentionHeadOptions {
  readonly operation: "AttentionHead";
  readonly bias: boolean;
  readonly isCausal: boolean;
  readonly layerIndex: number;
}
const WHAT = "AttentionHead";
const NAMES = ["q_proj", "k_proj", "v_proj"] as const;

function parameterShapes({ hiddenSize, headDim, bias }: AttentionHeadAttributes): Map<string, Shape> {
  const weights = NAMES.map((name) => [`${name}.weight`, [headDim, hiddenSize]] as const);
  const biases = bias ? NAMES.map((name) => [`${name}.bias`, [headDim]] as const) : [];
  return new Map<string, Shape>([...weights, ...biases]);
}
function resolve(o: AttentionHeadOptions): AttentionHeadAttributes {
  return {
    operation: WHAT,
    hiddenSize: wholeNumber(WHAT, "hiddenSize", o.hiddenSize, 1),
    headDim: wholeNumber(WHAT, "headDim", o.headDim, 1),
    bias: o.bias ?? false,
    isCausal: o.isCausal ?? true,
    layerIndex: wholeNumber(WHAT, "layerIndex", o.layerIndex ?? 0, 0),
  };
}
/**
 * One attention head (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2): attention of x @ Wq^T + bq over
 * x @ Wk^T + bk and x @ Wv^T + bv, scaled by 1 / sqrt(headDim), with no rotation and no output projection: x
 * [B, S, hidden] to [B, S, headDim]. Parameters: "q_proj.weight", "k_proj.weight", "v_proj.weight" [headDim,
 * hidden] and, with `bias`, their ".bias" [headDim]. Weights that are neighbours in memory, as {@link create}
 * lays them, are one matrix product. In a cache it is a layer of one head.
 */
export class AttentionHead implements Layer<AttentionHeadCall> {
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #attributes: AttentionHeadAttributes;
  readonly #qkv: Projections;

  /**
   * A layer over given parameters, whose memory it shares. Throws ArgumentError, ShapeError, DTypeError,
   * DeviceError or DisposedError that names the option or parameter.
   */
  constructor(options: AttentionHeadOptions, parameters: Parameters) {
    this.#attributes = resolve(options);
    this.parameters = ownParameters(checkParameters(WHAT, parameters, parameterShapes(this.#attributes)));
    this.#qkv = new Projections(
      NAMES.map((name) => ({
        weight: this.parameters.get(`${name}.weight`)!,
        bias: this.parameters.get(`${name}.bias`),
      })),
    );
    adopt(this);
  }
  /** A layer with random weights; see {@link InitOptions}. Throws ArgumentError, OutOfMemoryError. */
  static create(options: AttentionHeadOptions & InitOptions): AttentionHead {
    return scope(() => {
      const { dtype = "float32", engine, seed = 0 } = options;
      const { hiddenSize, headDim, bias } = resolve(options);
      wholeNumber(WHAT, "seed", seed, 0, 2 ** 32 - 1);
      const on = { dtype, ...(engine !== undefined && { engine }) };
      const weight = randn([3 * headDim, hiddenSize], { ...on, seed, std: INIT_STD });
      const shift = bias ? zeros([3 * headDim], on) : undefined;
      const parameters = new Map<string, Tensor>();
      NAMES.forEach((name, i) => {
        const [from, to] = [i * headDim, (i + 1) * headDim];
        parameters.set(`${name}.weight`, weight.slice(0, from, to));
        if (shift !== undefined) parameters.set(`${name}.bias`, shift.slice(0, from, to));
      });
      return new AttentionHead(options, parameters);
    });
  }
  attributes(): AttentionHeadAttributes {
    return this.#attributes;
  }
  /**
   * x [B, S, hidden] to [B, S, headDim]. With a cache x may also be ragged, [T, hidden], and B * S (or T) are the
   * step's tokens. A float32 x takes 16-bit weights. Throws ShapeError, DTypeError, ArgumentError, DeviceError,
   * DisposedError, OutOfMemoryError.
   */
  forward<D extends FloatDType>(x: Tensor<D>, options: AttentionHeadCall = {}): Tensor<D> {
    return scope(() => {
      checkHeadCall(x, options, this.#attributes);
      if (options.cache !== undefined) return this.#forwardPaged(x, options.cache);
      const { q, keys, rules } = this.#prepare(x, options);
      return attention(q, keys.k as Tensor<D>, keys.v as Tensor<D>, rules).squeeze(2) as Tensor<D>;
    });
  }
  /**
   * {@link forward} without a paged cache, and all keys and values of the call, for the `past` of the next: [B, P +
   * S, 1, headDim]. Same errors.
   */
  forwardWithPresent<D extends FloatDType>(
    x: Tensor<D>,
    options: AttentionHeadInputs = {},
  ): { readonly output: Tensor<D>; readonly present: PastKeysValues<D> } {
    return scope(() => {
      checkHeadTraining("forwardWithPresent", options);
      checkHeadCall(x, options, this.#attributes);
      const { q, keys, rules } = this.#prepare(x, options);
      const output = attention(q, keys.k as Tensor<D>, keys.v as Tensor<D>, rules).squeeze(2) as Tensor<D>;
      return { output, present: presentOf<D>(keys) };
    });
  }
  #forwardPaged<D extends FloatDType>(x: Tensor<D>, cache: BlockTableReader): Tensor<D> {
    const { hiddenSize, headDim, isCausal, layerIndex } = this.#attributes;
    const rows = x.contiguous().reshape([cache.positions.size, hiddenSize]); // [T, hidden]
    const [q, k, v] = this.#project(rows);
    cache.write(layerIndex, k, v);
    const attended = pagedAttention(q, cache.view(layerIndex), { isCausal }); // [T, 1, headDim]
    return attended.reshape([...x.shape.slice(0, -1), headDim]) as Tensor<D>;
  }
  /** Queries, all keys and values, and the rules under which they meet. */
  #prepare<D extends FloatDType>(x: Tensor<D>, { past, kvLengths, attnMask, dropout }: AttentionHeadInputs) {
    const [q, k, v] = this.#project(x);
    const keys = joinPast(past, { k, v, lengths: kvLengths, documents: undefined });
    // Query i is token i of x whatever `kvLengths` says.
    const queryOffset = past === undefined ? 0 : (past.lengths ?? keys.pastRows);
    const { isCausal } = this.#attributes;
    const rules: AttentionOptions = { isCausal, attnMask, dropout, queryOffset, kvLengths: keys.lengths };
    return { q, keys, rules };
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of x, of every parameter and of the past.
   * Parameters must have x's dtype. Same errors.
   */
  vjp<D extends FloatDType>(x: Tensor<D>, options: AttentionHeadVjpOptions = {}): AttentionHeadVjp<D> {
    return scope(() => {
      checkHeadTraining("vjp", options);
      checkHeadCall(x, options, this.#attributes);
      checkTrainable(WHAT, x, this.parameters);
      const { q, keys, rules } = this.#prepare(x, options);
      const { attnMask, attnMaskGradient = false } = options;
      const inner = attentionVjp(q, keys.k as Tensor<D>, keys.v as Tensor<D>, { ...rules, attnMaskGradient });
      const present = presentOf<D>(keys);
      const pass: Pass<D> = {
        x: x.alias() as Tensor<D>,
        inner,
        keys: { rows: keys.rows, pastRows: keys.pastRows },
        full: options.past !== undefined && options.backpropagation !== "oneStep",
        mask: attnMaskGradient ? attnMask : undefined,
      };
      const kept = [pass.x, ...inner.saved, ...(pass.keys.rows ? [pass.keys.rows] : [])];
      const saved = [...kept, ...Object.values(present)];
      return {
        output: inner.output.squeeze(2) as Tensor<D>,
        present,
        saved,
        backward: (dOutput, dPresent) => scope(() => this.#backward(pass, dOutput, dPresent)),
        [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
      };
    });
  }
  /** The steps of vjp in reverse. Gradients are written with `=`. */
  #backward<D extends FloatDType>(
    { x, inner, keys, full, mask }: Pass<D>,
    dOutput: Tensor<D>,
    dPresent: KeysValuesGradients<D> | undefined,
  ): AttentionHeadGradients<D> {
    const { headDim, bias } = this.#attributes;
    checkUpstream(dOutput, [...x.shape.slice(0, 2), headDim]);
    const g = inner.backward(dOutput.unsqueeze(2) as Tensor<D>);
    const [dk, dv] = (["k", "v"] as const).map((name) =>
      splitPast(addPresent(WHAT, g[name], name, dPresent), keys),
    );
    const heads = [g.q, dk!.fresh.contiguous(), dv!.fresh.contiguous()].map((t) => t.squeeze(2));
    const { x: dx, parts } = this.#qkv.backward(x, heads);
    const found = new Map<string, Tensor>(NAMES.map((name, i) => [`${name}.weight`, parts[i]!.weight]));
    if (bias) NAMES.forEach((name, i) => found.set(`${name}.bias`, parts[i]!.bias));
    const past = { k: dk!.past.contiguous() as Tensor<D>, v: dv!.past.contiguous() as Tensor<D> };
    return extendGradients(layerGradients(dx as Tensor<D>, found), {
      ...(full && { past }),
      ...(mask && { attnMask: maskGradient(g.attnMask!, mask) }),
    }) as AttentionHeadGradients<D>;
  }
  /** x [..., hidden] as q, k and v [..., 1, headDim]. */
  #project<D extends FloatDType>(x: Tensor<D>): readonly [q: Tensor<D>, k: Tensor<D>, v: Tensor<D>] {
    const [q, k, v] = this.#qkv.forward(x).map((t) => t.unsqueeze(x.rank - 1));
    return [q!, k!, v!];
  }
  [Symbol.dispose](): void {
    this.#qkv[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** What a forward pass leaves for its backward pass. */
interface Pass<D extends FloatDType> {
  readonly x: Tensor<D>;
  readonly inner: AttentionVjp<D>;
  readonly keys: Pick<JoinedKeysValues, "rows" | "pastRows">;
  /** Whether the past gets gradients. */
  readonly full: boolean;
  readonly mask: Tensor | undefined; // for its shape, where its gradient is asked for
}
