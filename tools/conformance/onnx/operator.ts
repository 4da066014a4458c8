import type { Engine } from "@heed/tensor";
import type { OnnxCase, VectorSet } from "@heed/testkit";
import type { Produced } from "../judge.ts";
import { Unsupported } from "../run.ts";

/** How cases of an ONNX operator are run, and the names that may stand in them. */
export interface OnnxOperator {
  readonly attributes: readonly string[];
  readonly inputs: readonly string[];
  readonly run: (set: VectorSet<OnnxCase>, one: OnnxCase, engine: Engine) => Produced[];
}
/**
 * Why a case is unsupported: it has an attribute or an input that the operator, as it is known here, does not, and that might
 * change its outputs. undefined if there is none.
 */
export function unknownOf(one: OnnxCase, operator: OnnxOperator): Unsupported | undefined {
  const unknown = [
    ...Object.keys(one.attributes).filter((name) => !operator.attributes.includes(name)),
    ...Object.keys(one.inputs).filter((name) => name !== "" && !operator.inputs.includes(name)),
  ];
  return unknown.length === 0 ? undefined : new Unsupported(`${one.op} does not know ${unknown.join(", ")}`);
}
