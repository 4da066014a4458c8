import type { Engine } from "@heed/tensor";
import type { ModelCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { Unsupported } from "../run.ts";
import { runGroupedQuery } from "./grouped-query.ts";
import { groupedQueryOptions } from "./options.ts";

/** A case of a models set by the layer that its configuration asks for. */
export function runModel(
  set: VectorSet<ModelCase>,
  one: ModelCase,
  engine: Engine,
): readonly Produced[] | Unsupported {
  if ("kv_lora_rank" in one.config) return new Unsupported("there is no layer for latent attention yet");
  const options = groupedQueryOptions(one.config);
  return options instanceof Unsupported ? options : runGroupedQuery(set, one, options, engine);
}
