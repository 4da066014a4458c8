import { GroupedQueryAttention, MultiHeadLatentAttention } from "@heed/attention";
import type { Engine } from "@heed/tensor";
import type { ModelCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { Unsupported } from "../run.ts";
import { isLatent, latentOptions } from "./latent-options.ts";
import { runLayer } from "./layer.ts";
import { groupedQueryOptions } from "./options.ts";

/** A case of a models set by the layer that its configuration asks for. */
export function runModel(
  set: VectorSet<ModelCase>,
  one: ModelCase,
  engine: Engine,
): readonly Produced[] | Unsupported {
  const groups = "weights input output decode_output grad_output grads".split(" ");
  const unknown = Object.keys(one.tensors).filter((group) => !groups.includes(group));
  if (unknown.length > 0) return new Unsupported(`no layer is given ${unknown.join(", ")}`);
  if (isLatent(one.config)) {
    const options = latentOptions(one.config);
    if (options instanceof Unsupported) return options;
    return runLayer(
      set,
      one,
      (weights) => {
        const layer = new MultiHeadLatentAttention(options, weights);
        return { layer, cache: layer.cacheLayout };
      },
      engine,
    );
  }
  const options = groupedQueryOptions(one.config);
  if (options instanceof Unsupported) return options;
  return runLayer(
    set,
    one,
    (weights) => {
      const layer = new GroupedQueryAttention(options, weights);
      const { numKvHeads, headDim } = layer.config;
      return { layer, cache: { numKvHeads, headDim } };
    },
    engine,
  );
}
