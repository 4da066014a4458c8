import {
  binary,
  cast,
  concat,
  contiguousStrides,
  type FloatDType,
  linear,
  linearBackward,
  Tensor,
  unscoped,
} from "@heed/tensor";

/** Parameters of one linear map: weight [out, in], bias [out]. */
export interface LinearParameters {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
}
/** Gradients of {@link Projections}: of x, and of each map's weight and bias. */
export interface ProjectionGradients {
  readonly x: Tensor;
  /** Of the stacked weight and bias; present when one product serves all maps. */
  readonly merged?: { readonly weight: Tensor; readonly bias: Tensor };
  /** `bias` is what a bias would have; callers without one leave it. */
  readonly parts: readonly { readonly weight: Tensor; readonly bias: Tensor }[];
}
/** One handle over blocks [n_i, ...] that follow one another in one storage; undefined when they do not. */
export function adjacent(blocks: readonly Tensor[]): Tensor | undefined {
  const [first] = blocks;
  if (first === undefined) return undefined;
  let end = first.offset;
  let rows = 0;
  for (const t of blocks) {
    if (t.storage !== first.storage || t.dtype !== first.dtype || t.offset !== end || !t.isContiguous)
      return undefined;
    end += t.size;
    rows += t.shape[0]!;
  }
  const shape = [rows, ...first.shape.slice(1)];
  first.storage.retain();
  return new Tensor(first.engine, first.storage, first.dtype, shape, contiguousStrides(shape), first.offset);
}
/** The maps as one, over the same memory, where weights and biases lie one after the other. */
function merge(parts: readonly LinearParameters[]): LinearParameters | undefined {
  const biases = parts.flatMap(({ bias }) => bias ?? []);
  if (biases.length !== 0 && biases.length !== parts.length) return undefined;
  return unscoped(() => {
    const weight = adjacent(parts.map((p) => p.weight));
    if (weight === undefined) return undefined;
    const bias = adjacent(biases);
    if (bias !== undefined || biases.length === 0) return { weight, bias };
    weight[Symbol.dispose]();
    return undefined;
  });
}
function apply(x: Tensor<FloatDType>, { weight, bias }: LinearParameters): Tensor<FloatDType> {
  return linear(x, weight, { bias: bias && cast(bias, x.dtype) });
}
/**
 * Linear maps of one input. Where their weights are neighbours in memory, as slices of one [sum of out, in]
 * tensor are, one matrix product serves them all; else each has its own. Results belong to the caller's
 * scope.
 */
export class Projections {
  readonly #parts: readonly LinearParameters[];
  readonly #rows: readonly number[]; // of each map's weight
  readonly #merged: LinearParameters | undefined;
  readonly #owned: readonly Tensor[]; // handles on merged memory that were made here

  /**
   * Keeps the given handles, which stay the caller's to dispose. With `rows`, `parts` is one map whose output is
   * cut into pieces of so many.
   */
  constructor(parts: readonly LinearParameters[], rows?: readonly number[]) {
    this.#parts = parts;
    this.#rows = rows ?? parts.map(({ weight }) => weight.shape[0]!);
    const found = parts.length > 1 ? merge(parts) : undefined;
    this.#merged = rows === undefined ? found : parts[0];
    this.#owned = [found?.weight, found?.bias].filter((t) => t !== undefined);
  }
  /** Whether one product serves all maps. */
  get isMerged(): boolean {
    return this.#merged !== undefined;
  }
  /** x [..., in] to one [..., out_i] per map; views of one tensor when merged. Errors as `linear`. */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D>[] {
    const input = x as Tensor as Tensor<FloatDType>;
    if (this.#merged === undefined) return this.#parts.map((p) => apply(input, p)) as Tensor[] as Tensor<D>[];
    const all = apply(input, this.#merged);
    return this.#cut(all, -1) as Tensor[] as Tensor<D>[];
  }
  /** Gradients for the upstream gradients [..., out_i] of each map. Errors as `linearBackward`. */
  backward(x: Tensor, dOut: readonly Tensor[]): ProjectionGradients {
    if (this.#merged !== undefined) {
      const all = linearBackward(x, this.#merged.weight, concat(dOut, -1));
      const biases = this.#cut(all.bias, 0);
      const parts = this.#cut(all.weight, 0).map((weight, i) => ({ weight, bias: biases[i]! }));
      return { x: all.x, merged: { weight: all.weight, bias: all.bias }, parts };
    }
    const each = this.#parts.map((p, i) => linearBackward(x, p.weight, dOut[i]!));
    const [first, ...others] = each;
    for (const g of others) binary("add", first!.x, g.x, first!.x);
    return { x: first!.x, parts: each };
  }
  /** Slices of t along an axis, as long as each map's output. */
  #cut(t: Tensor, axis: number): Tensor[] {
    let at = 0;
    return this.#rows.map((rows) => t.slice(axis, at, (at += rows)));
  }
  /** Frees the handles on merged memory. */
  [Symbol.dispose](): void {
    for (const t of this.#owned) t[Symbol.dispose]();
  }
}
