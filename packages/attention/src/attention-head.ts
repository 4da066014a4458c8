import {
  adopt,
  attention,
  type AttentionOptions,
  attentionVjp,
  type FloatDType,
  randn,
  scope,
  ShapeError,
  show,
  type Shape,
  type Tensor,
  zeros,
} from "@heed/tensor";
import { wholeNumber } from "./check.ts";
import {
  INIT_STD,
  type InitOptions,
  type Layer,
  type LayerAttributes,
  layerGradients,
  type LayerVjp,
  layerVjp,
} from "./layer.ts";
import { checkParameters, checkTrainable, ownParameters, type Parameters } from "./parameters.ts";
import { Projections } from "./projections.ts";

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
}
/** Attributes of {@link AttentionHead}. */
export interface AttentionHeadAttributes extends LayerAttributes, AttentionHeadOptions {
  readonly operation: "AttentionHead";
  readonly bias: boolean;
  readonly isCausal: boolean;
}
/**
 * What a call of {@link AttentionHead} may add: `attnMask` broadcasts to [B, 1, S, S]; `kvLengths` counts the
 * tokens in use of each sequence, from the first on.
 */
export type AttentionHeadCall = Pick<AttentionOptions, "attnMask" | "kvLengths" | "dropout">;

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
  };
}
/** Query i is token i whatever `kvLengths` says, so positions of the mask start at 0. */
function rules({ isCausal }: AttentionHeadAttributes, call: AttentionHeadCall): AttentionOptions {
  const { attnMask, kvLengths, dropout } = call;
  return { isCausal, attnMask, kvLengths, dropout, queryOffset: 0 };
}
/**
 * One attention head (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2): attention of x @ Wq^T + bq over
 * x @ Wk^T + bk and x @ Wv^T + bv, scaled by 1 / sqrt(headDim), with no rotation and no output projection: x
 * [B, S, hidden] to [B, S, headDim]. Parameters: "q_proj.weight", "k_proj.weight", "v_proj.weight" [headDim,
 * hidden] and, with `bias`, their ".bias" [headDim]. Weights that are neighbours in memory, as {@link create}
 * lays them, are one matrix product.
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
   * x [B, S, hidden] to [B, S, headDim]. A float32 x takes 16-bit weights. Throws ShapeError, DTypeError,
   * DeviceError, DisposedError, OutOfMemoryError.
   */
  forward<D extends FloatDType>(x: Tensor<D>, options: AttentionHeadCall = {}): Tensor<D> {
    return scope(() => {
      const [q, k, v] = this.#project(x);
      return attention(q, k, v, rules(this.#attributes, options)).squeeze(2) as Tensor<D>;
    });
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of x and of every parameter. Parameters
   * must have x's dtype. Same errors.
   */
  vjp<D extends FloatDType>(x: Tensor<D>, options: AttentionHeadCall = {}): LayerVjp<D> {
    return scope(() => {
      checkTrainable(WHAT, x, this.parameters);
      const [q, k, v] = this.#project(x);
      const inner = attentionVjp(q, k, v, rules(this.#attributes, options));
      const input = x.alias();
      return layerVjp(inner.output.squeeze(2) as Tensor<D>, [input, ...inner.saved], (dOutput) =>
        scope(() => {
          checkUpstream(dOutput, [...input.shape.slice(0, 2), this.#attributes.headDim]);
          const g = inner.backward(dOutput.unsqueeze(2) as Tensor<D>);
          const { x: dx, parts } = this.#qkv.backward(
            input,
            [g.q, g.k, g.v].map((t) => t.squeeze(2)),
          );
          const found = new Map<string, Tensor>(NAMES.map((name, i) => [`${name}.weight`, parts[i]!.weight]));
          if (this.#attributes.bias) NAMES.forEach((name, i) => found.set(`${name}.bias`, parts[i]!.bias));
          return layerGradients(dx as Tensor<D>, found);
        }),
      );
    });
  }
  /** x as q, k and v [B, S, 1, headDim]. */
  #project<D extends FloatDType>(x: Tensor<D>): readonly [q: Tensor<D>, k: Tensor<D>, v: Tensor<D>] {
    const { hiddenSize } = this.#attributes;
    if (x.rank !== 3 || x.shape[2] !== hiddenSize) {
      throw new ShapeError(`[${WHAT}] x must be [B, S, ${hiddenSize}]; got ${show(x)}`, {
        x: x.shape,
        hiddenSize,
      });
    }
    const [q, k, v] = this.#qkv.forward(x).map((t) => t.unsqueeze(2));
    return [q!, k!, v!];
  }
  [Symbol.dispose](): void {
    this.#qkv[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
/** Throws ShapeError unless an upstream gradient has the output's shape. */
function checkUpstream(dOutput: Tensor, shape: Shape): void {
  if (dOutput.shape.join() === shape.join()) return;
  throw new ShapeError(
    `[${WHAT} backward] dOutput must be the output's [${shape.join(", ")}]; got ${show(dOutput)}`,
    { dOutput: dOutput.shape, output: shape },
  );
}
