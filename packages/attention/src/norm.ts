import {
  adopt,
  full,
  type FloatDType,
  rmsNorm,
  rmsNormBackward,
  scope,
  type Shape,
  type Tensor,
} from "@heed/tensor";
import { notNegative, wholeNumber } from "./check.ts";
import {
  type InitOptions,
  type Layer,
  type LayerAttributes,
  layerGradients,
  type LayerVjp,
  layerVjp,
} from "./layer.ts";
import { checkParameters, ownParameters, type Parameters } from "./parameters.ts";

/** How a root-mean-square norm is computed. */
export interface NormOptions {
  /** Added to the mean of squares. Default 1e-6. */
  readonly eps?: number | undefined;
  /** Multiply by 1 + weight, as Gemma does. Default false. */
  readonly unitOffset?: boolean | undefined;
}
/** Options of {@link RMSNorm}. */
export interface RMSNormLayerOptions extends NormOptions {
  /** The last axes of x, over which it normalises and which the weight has. */
  readonly shape: Shape;
}
/** Attributes of {@link RMSNorm}. */
export interface RMSNormAttributes extends LayerAttributes, RMSNormLayerOptions {
  readonly operation: "RMSNorm";
  readonly eps: number;
  readonly unitOffset: boolean;
}
/** Defaults filled in. Throws ArgumentError for a negative eps. */
export function resolveNorm(
  what: string,
  o: NormOptions,
): { readonly eps: number; readonly unitOffset: boolean } {
  return { eps: notNegative(what, "eps", o.eps ?? 1e-6), unitOffset: o.unitOffset ?? false };
}
/**
 * Root-mean-square norm (Zhang, Sennrich 2019, arXiv:1910.07467) over the last axes: x * rsqrt(mean(x^2) +
 * eps) * weight. One parameter, "weight", of `shape`.
 */
export class RMSNorm implements Layer {
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #attributes: RMSNormAttributes;

  /** A layer over given parameters, whose memory it shares. Throws as the constructor of `Linear`. */
  constructor(options: RMSNormLayerOptions, parameters: Parameters) {
    const shape = options.shape.map((n) => wholeNumber("RMSNorm", "shape", n, 1));
    wholeNumber("RMSNorm", "rank of shape", shape.length, 1);
    this.#attributes = { operation: "RMSNorm", shape, ...resolveNorm("RMSNorm", options) };
    this.parameters = ownParameters(checkParameters("RMSNorm", parameters, new Map([["weight", shape]])));
    adopt(this);
  }
  /** A layer that only normalises: weight 1, or 0 with `unitOffset`. */
  static create(options: RMSNormLayerOptions & Omit<InitOptions, "seed">): RMSNorm {
    return scope(() => {
      const { dtype = "float32", engine } = options;
      const weight = full(options.shape, options.unitOffset === true ? 0 : 1, {
        dtype,
        ...(engine !== undefined && { engine }),
      });
      return new RMSNorm(options, { weight });
    });
  }
  attributes(): RMSNormAttributes {
    return this.#attributes;
  }
  /**
   * x [..., ...shape] to the same. The weight may have any float dtype. Throws ShapeError, DTypeError,
   * DeviceError, DisposedError.
   */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return rmsNorm(x, this.parameters.get("weight")!, this.#options());
  }
  /** {@link forward} with its backward pass. Same errors. */
  vjp<D extends FloatDType>(x: Tensor<D>): LayerVjp<D> {
    return scope(() => {
      const input = x.alias();
      return layerVjp(this.forward(x), [input], (dOutput) =>
        scope(() => {
          const g = rmsNormBackward(input, this.parameters.get("weight")!, dOutput, this.#options());
          return layerGradients(g.x as Tensor<D>, new Map([["weight", g.weight!]]));
        }),
      );
    });
  }
  #options(): { eps: number; unitOffset: boolean; axis: number } {
    const { eps, unitOffset, shape } = this.#attributes;
    return { eps, unitOffset, axis: -shape.length };
  }
  [Symbol.dispose](): void {
    for (const t of this.parameters.values()) t[Symbol.dispose]();
  }
}
