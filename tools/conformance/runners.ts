import { runAttention } from "./onnx/attention.ts";
import { runRmsNormalization } from "./onnx/rms-normalization.ts";
import { runRotaryEmbedding } from "./onnx/rotary-embedding.ts";
import { runModel } from "./models/model.ts";
import { Unsupported } from "./run.ts";
import type { Runner } from "./run.ts";
import { runSdpa } from "./sdpa.ts";

/** The ONNX operators that have a counterpart in the library. */
const onnx = new Map([
  ["Attention", runAttention],
  ["RotaryEmbedding", runRotaryEmbedding],
  ["RMSNormalization", runRmsNormalization],
]);

/** Runs a case by the library's public operations and layers. */
export const runByLibrary: Runner = (set, index, engine) => {
  switch (set.kind) {
    case "onnx": {
      const one = set.vectors.cases[index]!;
      const run = onnx.get(one.op);
      return run
        ? run(set.vectors, one, engine)
        : new Unsupported(`the ONNX operator ${one.op} has no counterpart`);
    }
    case "sdpa":
      return runSdpa(set.vectors, set.vectors.cases[index]!, engine);
    case "models":
      return runModel(set.vectors, set.vectors.cases[index]!, engine);
  }
};
