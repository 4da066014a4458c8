import { tensor } from "@heed/tensor";
import type { DTypeArrays, Engine, Tensor } from "@heed/tensor";
import type { VectorTensor } from "@heed/testkit";

/** A vector as a tensor on an engine. */
export function upload({ data, shape, dtype }: VectorTensor, engine: Engine): Tensor {
  return tensor(data as DTypeArrays[typeof dtype], shape, { dtype, engine });
}
