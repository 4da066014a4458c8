import { attentionVjp, attentionWithLse, cast, tensor } from "@heed/tensor";
import type { AttentionOptions, Engine, FloatDType, Tensor } from "@heed/tensor";
import { alibiSlopesFor, conformanceTolerance } from "@heed/testkit";
import type { SdpaCase, VectorSet } from "@heed/testkit";
import type { Produced } from "./judge.ts";
import { Unsupported } from "./run.ts";
import { upload } from "./upload.ts";

const PARAMS = "causal window_left window_right softcap scale alibi kv_lengths".split(" ");
const ROLES = "q k v bias sinks grad_output output lse grad_q grad_k grad_v grad_bias grad_sinks".split(" ");

/** Parameters that are set and tensors, of those that nobody here reads: they might change the outputs. */
function unknownOf({ params, tensors }: SdpaCase): string[] {
  const isSet = (value: unknown): boolean => value !== null && value !== false;
  return [
    ...Object.entries(params).flatMap(([name, value]) =>
      isSet(value) && !PARAMS.includes(name) ? [name] : [],
    ),
    ...Object.keys(tensors).filter((role) => !ROLES.includes(role)),
  ];
}
/**
 * A case of an sdpa set: output, log-sum-exp and the gradients of q, k, v, bias and sinks, in float64 as the vectors are,
 * and in float32, where kernels are fastest.
 */
export function runSdpa(set: VectorSet<SdpaCase>, one: SdpaCase, engine: Engine): Produced[] | Unsupported {
  const unknown = unknownOf(one);
  if (unknown.length > 0) return new Unsupported(`attention does not know ${unknown.join(", ")}`);
  return [...runIn("float64", set, one, engine), ...runIn("float32", set, one, engine)];
}

function optionsOf(
  { params }: SdpaCase,
  q: Tensor,
  load: (role: string) => Tensor | undefined,
): AttentionOptions & { layout: "bhsd" } {
  const { engine, dtype } = q;
  const side = (n: number | null | undefined): number | undefined => n ?? undefined;
  return {
    layout: "bhsd",
    isCausal: params.causal,
    window: { left: side(params.window_left), right: side(params.window_right) },
    softcap: side(params.softcap),
    scale: side(params.scale),
    kvLengths: params.kv_lengths
      ? tensor(params.kv_lengths, undefined, { dtype: "int32", engine })
      : undefined,
    alibiSlopes: params.alibi
      ? cast(tensor(alibiSlopesFor(q.shape[1]!), undefined, { dtype: "float64", engine }), dtype)
      : undefined,
    attnMask: load("bias"),
    sinks: load("sinks"),
  };
}

function runIn(
  dtype: "float32" | "float64",
  set: VectorSet<SdpaCase>,
  one: SdpaCase,
  engine: Engine,
): Produced[] {
  const { tensors } = one;
  const load = (role: string): Tensor<FloatDType> | undefined => {
    const name = tensors[role];
    if (name === undefined) return undefined;
    const given = upload(set.tensor(name), engine);
    // A boolean bias says who may attend.
    return given.dtype === "bool" ? (given as Tensor as Tensor<FloatDType>) : cast(given, dtype);
  };
  const required = (role: string): Tensor<FloatDType> => {
    const found = load(role);
    if (found === undefined) throw new TypeError(`${one.name} names no tensor ${role}`);
    return found;
  };
  const [q, k, v] = [required("q"), required("k"), required("v")];
  const options = optionsOf(one, q, load);
  const { output, lse } = attentionWithLse(q, k, v, options);
  const attnMaskGradient = tensors.grad_bias !== undefined;
  const gradients = attentionVjp(q, k, v, { ...options, attnMaskGradient }).backward(required("grad_output"));
  const computed: Record<string, Tensor | undefined> = {
    output,
    lse,
    grad_q: gradients.q,
    grad_k: gradients.k,
    grad_v: gradients.v,
    grad_bias: gradients.attnMask,
    grad_sinks: gradients.sinks,
  };
  return Object.entries(computed).flatMap(([role, value]) => {
    const name = tensors[role];
    if (name === undefined) return [];
    if (value === undefined) throw new TypeError(`${one.name} expects ${role}, which was not computed`);
    const kind = role.startsWith("grad_") ? "gradient" : "forward";
    const expected = set.tensor(name);
    const stored = expected.dtype as FloatDType;
    // What is stored in fewer bits than it was computed in has their rounding.
    const rel = Math.max(...[dtype, stored].map((d) => conformanceTolerance(d, kind)));
    return { name: `${role} ${dtype}`, value: cast(value, stored), expected, rel };
  });
}
