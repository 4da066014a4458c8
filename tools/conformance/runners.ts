import { attentionOperator } from "./onnx/attention.ts";
import { type OnnxOperator, unknownOf } from "./onnx/operator.ts";
import { rmsNormalizationOperator } from "./onnx/rms-normalization.ts";
import { rotaryEmbeddingOperator } from "./onnx/rotary-embedding.ts";
import { runModel } from "./models/model.ts";
import { Unsupported } from "./run.ts";
import type { Runner } from "./run.ts";
import { runSdpa } from "./sdpa.ts";

/** The ONNX operators that have a counterpart in the library, with what a case of theirs may say. */
const onnx: ReadonlyMap<string, OnnxOperator> = new Map([
  ["Attention", attentionOperator],
  ["RotaryEmbedding", rotaryEmbeddingOperator],
  ["RMSNormalization", rmsNormalizationOperator],
]);

/** Runs a case by the library's public operations and layers. */
export const runByLibrary: Runner = (set, index, engine) => {
  switch (set.kind) {
    case "onnx": {
      const one = set.vectors.cases[index]!;
      const operator = onnx.get(one.op);
      if (operator === undefined) return new Unsupported(`the ONNX operator ${one.op} has no counterpart`);
      return unknownOf(one, operator) ?? operator.run(set.vectors, one, engine);
    }
    case "sdpa":
      return runSdpa(set.vectors, set.vectors.cases[index]!, engine);
    case "models":
      return runModel(set.vectors, set.vectors.cases[index]!, engine);
  }
};
