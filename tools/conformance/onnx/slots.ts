import type { Engine, Tensor } from "@heed/tensor";
import { conformanceTolerance } from "@heed/testkit";
import type { FloatDType, OnnxCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { upload } from "../upload.ts";

/** The inputs of an ONNX case by slot name. An empty name in a slot list means that the slot is absent. */
export interface OnnxInputs {
  /** Throws a TypeError in words if the case lacks it. */
  required(slot: string): Tensor;
  optional(slot: string): Tensor | undefined;
}

/** Uploads inputs of a case as they are asked for. */
export function onnxInputs(set: VectorSet<OnnxCase>, { name, inputs }: OnnxCase, engine: Engine): OnnxInputs {
  const optional = (slot: string): Tensor | undefined => {
    const found = inputs[slot];
    return found ? upload(set.tensor(found.tensor), engine) : undefined;
  };
  return {
    optional,
    required(slot) {
      const found = optional(slot);
      if (found === undefined) throw new TypeError(`${name} has no input ${slot}`);
      return found;
    },
  };
}

/**
 * Pairs every output that an ONNX case names with what was computed for it, within the tolerance of its dtype. Throws a
 * TypeError in words for an output that was not computed.
 */
export function onnxOutputs(
  set: VectorSet<OnnxCase>,
  { outputs }: OnnxCase,
  computed: Readonly<Record<string, Tensor | undefined>>,
): Produced[] {
  return Object.entries(outputs).map(([name, slot]) => {
    const value = computed[name];
    if (value === undefined) throw new TypeError(`no output ${name} is computed`);
    const expected = set.tensor(slot.tensor);
    return { name, value, expected, rel: conformanceTolerance(expected.dtype as FloatDType, "forward") };
  });
}
