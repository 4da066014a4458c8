import type { Layer } from "@heed/attention";
import { KvCache, type KvCacheOptions } from "@heed/kvcache";
import { type BlockTableReader, concat, type Engine, type FloatDType, type Tensor } from "@heed/tensor";
import { conformanceTolerance, type ModelCase, type VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { upload } from "../upload.ts";

/** Tokens of a page; small, so that the short sequences of the vectors lie on several. */
const pageSize = 4;

/** A layer that reads through a cache, and the cache's options that it calls for. */
export interface CachedLayer {
  readonly layer: Pick<Layer, "vjp"> & {
    forward<D extends FloatDType>(x: Tensor<D>, options?: { readonly cache: BlockTableReader }): Tensor<D>;
  };
  readonly cache: Pick<KvCacheOptions, "numKvHeads" | "headDim" | "valueHeadDim" | "valuesInKeys">;
}

/** A prefill of the first half of the tokens, then one token at a time, through a paged cache: [B, S, hidden]. */
function decode({ layer, cache: shape }: CachedLayer, x: Tensor<FloatDType>): Tensor<FloatDType> {
  const [B, S] = x.shape as [number, number, number];
  const { engine, dtype } = x;
  const maxPages = B * Math.ceil(S / pageSize);
  using cache = new KvCache({ layers: 1, ...shape, pageSize, dtype, engine, maxPages });
  const sequences = Array.from({ length: B }, () => cache.open());
  const advance = (from: number, to: number): Tensor<FloatDType> => {
    using step = cache.reserve(sequences.map((sequence) => ({ sequence, tokens: to - from })));
    const y = layer.forward(x.slice(1, from, to) as Tensor<FloatDType>, { cache: step });
    step.commit();
    return y;
  };
  const prefill = Math.ceil(S / 2);
  const parts = [advance(0, prefill)];
  for (let t = prefill; t < S; t++) parts.push(advance(t, t + 1));
  return concat(parts, 1);
}

/**
 * The full sequence, the same through prefill and decode, and the gradients of the input and of every weight, by the layer that `build`
 * makes of the case's weights. A model without a decoded output of its own must decode to its output.
 */
export function runLayer(
  set: VectorSet<ModelCase>,
  one: ModelCase,
  build: (weights: ReadonlyMap<string, Tensor>) => CachedLayer,
  engine: Engine,
): Produced[] {
  const named = (group: string, role: string = group): string => {
    const name = one.tensors[group]?.[role];
    if (name === undefined) throw new TypeError(`${one.name} names no tensor ${group}/${role}`);
    return name;
  };
  const load = (name: string): Tensor<FloatDType> => upload(set.tensor(name), engine) as Tensor<FloatDType>;
  const weights = new Map(
    Object.entries(one.tensors.weights ?? {}).map(([role, name]) => [role, load(name)]),
  );
  const cached = build(weights);
  const { layer } = cached;
  const x = load(named("input"));
  const { output, backward } = layer.vjp(x);
  const gradients = backward(load(named("grad_output")));
  const produced = (
    name: string,
    value: Tensor | undefined,
    tensor: string,
    of: "model" | "gradient",
  ): Produced => {
    if (value === undefined) throw new TypeError(`no ${name} is computed`);
    return { name, value, expected: set.tensor(tensor), rel: conformanceTolerance(x.dtype, of) };
  };
  const decoded = one.tensors.decode_output === undefined ? named("output") : named("decode_output");
  return [
    produced("output", layer.forward(x), named("output"), "model"),
    produced("vjp output", output, named("output"), "model"),
    produced("decode_output", decode(cached, x), decoded, "model"),
    ...Object.entries(one.tensors.grads ?? {}).map(([role, tensor]) => {
      const value = role === "input" ? gradients.input : gradients.parameters.get(role);
      return produced(`grad ${role}`, value, tensor, "gradient");
    }),
  ];
}
