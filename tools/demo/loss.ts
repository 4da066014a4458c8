import {
  arange,
  binary,
  div,
  full,
  gather,
  log,
  maximum,
  mean,
  mul,
  scatterAdd,
  scope,
  softmax,
  type Tensor,
} from "@heed/tensor";

/** Mean cross entropy in nats and its gradient with respect to the logits. */
export interface Loss {
  readonly value: Tensor<"float32">; // scalar
  readonly gradient: Tensor<"float32">; // [T, V]
}
/** Place of each target's probability in the flattened [T, V]: t * V + target. */
function places(targets: Tensor<"int32">, V: number): Tensor<"int32"> {
  const T = targets.size;
  return binary("add", arange(0, T * V, V, { engine: targets.engine }), targets) as Tensor<"int32">;
}
/** Mean of -ln softmax(logits)[target] over rows: logits [T, V], targets int32 [T]. */
export function crossEntropy(logits: Tensor<"float32">, targets: Tensor<"int32">): Tensor<"float32"> {
  return scope(() => {
    const p = softmax(logits);
    const chosen = gather(p.reshape([-1]) as Tensor<"float32">, places(targets, logits.shape[1]!));
    return mul(mean(log(maximum(chosen, 1e-30))), -1);
  });
}
/** {@link crossEntropy} with its gradient, (softmax - one-hot) / T. */
export function crossEntropyVjp(logits: Tensor<"float32">, targets: Tensor<"int32">): Loss {
  return scope(() => {
    const [T, V] = logits.shape as unknown as [number, number];
    const p = softmax(logits);
    const at = places(targets, V);
    const chosen = gather(p.reshape([-1]) as Tensor<"float32">, at);
    const value = mul(mean(log(maximum(chosen, 1e-30))), -1);
    const gradient = div(p, T);
    scatterAdd(full([T], -1 / T, { engine: logits.engine }), at, gradient.reshape([-1]));
    return { value, gradient };
  });
}
