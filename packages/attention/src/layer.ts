import type { Engine, FloatDType, Tensor } from "@heed/tensor";

/** What a layer is apart from its parameters, as plain JSON: the name of its operation and its options. */
export interface LayerAttributes {
  readonly operation: string;
}
/** What every layer has. Layers own handles on their parameters and keep no other state between calls. */
export interface Module {
  /** By their Hugging Face names, such as "q_proj.weight". Handles of the layer's own; disposed with it. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Building a layer from these and the parameters gives the same function. */
  attributes(): LayerAttributes;
  /** Frees the layer's handles; use after it throws DisposedError. Calling it again does nothing. */
  [Symbol.dispose](): void;
}
/** A layer of one input. `Options` are the call's, such as positions. */
export interface Layer<Options = undefined> extends Module {
  /** The output, for inference. */
  forward<D extends FloatDType>(x: Tensor<D>, options?: Options): Tensor<D>;
  /** The output and its backward pass, for training. */
  vjp<D extends FloatDType>(x: Tensor<D>, options?: Options): LayerVjp<D>;
}
/**
 * A forward pass that can be differentiated. Several may be open at once, and the layer must outlive them;
 * neither it nor the input may be changed before backward is called. Dispose it when the gradients are taken.
 */
export interface LayerVjp<D extends FloatDType = FloatDType> {
  readonly output: Tensor<D>;
  /**
   * Gradients of sum(dOutput * output); may be called again. Throws ShapeError, DTypeError, DeviceError,
   * DisposedError.
   */
  backward(dOutput: Tensor<NoInfer<D>>): LayerGradients<D>;
  /** What the backward pass keeps alive. */
  readonly saved: readonly Tensor[];
  /** Frees `saved`, not `output`. */
  [Symbol.dispose](): void;
}
/** Gradients of a layer's input and of every parameter, in their shapes and dtypes. */
export interface LayerGradients<D extends FloatDType = FloatDType> {
  readonly input: Tensor<D>;
  /** Same names as the layer's parameters. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  [Symbol.dispose](): void;
}
/**
 * How layers are initialised at random: weights are normal with mean 0 and standard deviation 0.02, biases 0,
 * norms the identity.
 */
export interface InitOptions<D extends FloatDType = FloatDType> {
  /** Default float32. */
  readonly dtype?: D | undefined;
  /** An engine or the name of a registered one; default the default engine. */
  readonly engine?: Engine | string | undefined;
  /** The same seed gives the same parameters on every machine. A whole number below 2^32; default 0. */
  readonly seed?: number | undefined;
}
/** Standard deviation of random weights, as GPT-2 and Llama use it (Radford et al. 2019). */
export const INIT_STD = 0.02;

/** Gradients as a plain object, so that a scope sees the tensors in it. */
export function layerGradients<D extends FloatDType>(
  input: Tensor<D>,
  parameters: ReadonlyMap<string, Tensor>,
): LayerGradients<D> {
  return {
    input,
    parameters,
    [Symbol.dispose]: () => [input, ...parameters.values()].forEach((t) => t[Symbol.dispose]()),
  };
}
/** A vjp as a plain object, so that a scope sees the tensors in it. */
export function layerVjp<D extends FloatDType>(
  output: Tensor<D>,
  saved: readonly Tensor[],
  backward: (dOutput: Tensor<D>) => LayerGradients<D>,
): LayerVjp<D> {
  return { output, saved, backward, [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()) };
}
