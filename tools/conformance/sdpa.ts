import { attentionVjp, attentionWithLse, cast, tensor } from "@heed/tensor";
import type { AttentionOptions, Engine, FloatDType, Tensor } from "@heed/tensor";
import { alibiSlopesFor, conformanceTolerance } from "@heed/testkit";
import type { SdpaCase, VectorSet } from "@heed/testkit";
import type { Produced } from "./judge.ts";
import { upload } from "./upload.ts";

/**
 * A case of an sdpa set: output, log-sum-exp and the gradients of q, k, v, bias and sinks, in float64 as the vectors are,
 * and in float32, where kernels are fastest.
 */
export function runSdpa(set: VectorSet<SdpaCase>, one: SdpaCase, engine: Engine): Produced[] {
  return [...runIn("float64", set, one, engine), ...runIn("float32", set, one, engine)];
}

function optionsOf(
  { params }: SdpaCase,
  q: Tensor,
  load: (role: string) => Tensor | undefined,
): AttentionOptions & { layout: "bhsd" } {
  const { engine, dtype } = q;
  const side = (n: number | null): number | undefined => n ?? undefined;
  return {
    layout: "bhsd",
    isCausal: params.causal,
    window: { left: side(params.window_left), right: side(params.window_right) },
    softcap: side(params.softcap),
    scale: side(params.scale),
    kvLengths:
      params.kv_lengths === null
        ? undefined
        : tensor(params.kv_lengths, undefined, { dtype: "int32", engine }),
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
    return name === undefined ? undefined : cast(upload(set.tensor(name), engine), dtype);
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
    const rel = conformanceTolerance(dtype, kind);
    return { name: `${role} ${dtype}`, value: cast(value, "float64"), expected: set.tensor(name), rel };
  });
}
