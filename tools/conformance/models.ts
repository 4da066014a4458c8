import type { Engine } from "@heed/tensor";
import type { ModelCase, VectorSet } from "@heed/testkit";
import type { Produced } from "./judge.ts";
import { Unsupported } from "./run.ts";

/** A case of a models set, by the layer for its model. */
export function runModel(
  _set: VectorSet<ModelCase>,
  { model }: ModelCase,
  _engine: Engine,
): Produced[] | Unsupported {
  return new Unsupported(`there is no layer for model "${model}" yet`);
}
