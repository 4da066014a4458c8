import { adopt, type FloatDType, randn, scope, type Tensor, zeros } from "@heed/tensor";
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

/** Options of {@link Linear}. */
export interface LinearLayerOptions {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Add "bias" [outFeatures]. Default false. */
  readonly bias?: boolean | undefined;
}
/** Attributes of {@link Linear}. */
export interface LinearAttributes extends LayerAttributes, LinearLayerOptions {
  readonly operation: "Linear";
  readonly bias: boolean;
}
/**
 * y = x @ weight^T + bias for x [..., inFeatures]: parameters "weight" [outFeatures, inFeatures] and "bias"
 * [outFeatures].
 */
export class Linear implements Layer {
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #attributes: LinearAttributes;
  readonly #projection: Projections;

  /**
   * A layer over given parameters, whose memory it shares. Throws ArgumentError, ShapeError, DTypeError,
   * DeviceError or DisposedError that names the parameter.
   */
  constructor(options: LinearLayerOptions, parameters: Parameters) {
    const inFeatures = wholeNumber("Linear", "inFeatures", options.inFeatures, 1);
    const outFeatures = wholeNumber("Linear", "outFeatures", options.outFeatures, 1);
    const bias = options.bias ?? false;
    const shapes = new Map<string, readonly number[]>([["weight", [outFeatures, inFeatures]]]);
    if (bias) shapes.set("bias", [outFeatures]);
    this.parameters = ownParameters(checkParameters("Linear", parameters, shapes));
    this.#attributes = { operation: "Linear", inFeatures, outFeatures, bias };
    this.#projection = new Projections([
      { weight: this.parameters.get("weight")!, bias: this.parameters.get("bias") },
    ]);
    adopt(this);
  }
  /** A layer with random weights; see {@link InitOptions}. */
  static create(options: LinearLayerOptions & InitOptions): Linear {
    return scope(() => {
      const { dtype = "float32", engine, seed = 0, inFeatures, outFeatures } = options;
      const on = { dtype, ...(engine !== undefined && { engine }) };
      wholeNumber("Linear", "seed", seed, 0, 2 ** 32 - 1);
      const parameters = new Map<string, Tensor>([
        ["weight", randn([outFeatures, inFeatures], { ...on, seed, std: INIT_STD })],
      ]);
      if (options.bias === true) parameters.set("bias", zeros([outFeatures], on));
      return new Linear(options, parameters);
    });
  }
  attributes(): LinearAttributes {
    return this.#attributes;
  }
  /**
   * x [..., inFeatures] to [..., outFeatures]. A float32 x takes 16-bit weights. Throws ShapeError,
   * DTypeError, DeviceError, DisposedError.
   */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return scope(() => this.#projection.forward(x)[0]!);
  }
  /** {@link forward} with its backward pass; parameters must have x's dtype. Same errors. */
  vjp<D extends FloatDType>(x: Tensor<D>): LayerVjp<D> {
    return scope(() => {
      checkTrainable("Linear", x, this.parameters);
      const input = x.alias();
      return layerVjp(this.forward(x), [input], (dOutput) =>
        scope(() => {
          const { x: dx, parts } = this.#projection.backward(input, [dOutput]);
          const parameters = new Map<string, Tensor>([["weight", parts[0]!.weight]]);
          if (this.#attributes.bias) parameters.set("bias", parts[0]!.bias);
          return layerGradients(dx as Tensor<D>, parameters);
        }),
      );
    });
  }
  [Symbol.dispose](): void {
    this.#projection[Symbol.dispose]();
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
