import { binary, mul, scope, sum, type Tensor, unary, zeros } from "@heed/tensor";

/** Options of {@link AdamW}. */
export interface AdamWOptions {
  readonly beta1?: number;
  readonly beta2?: number;
  readonly eps?: number;
  /** Decoupled decay of weights of rank 2; gains of norms are left alone. */
  readonly weightDecay?: number;
  /** The gradient's Euclidean norm is cut to this. */
  readonly clip?: number;
}
interface State {
  readonly weight: Tensor<"float32">;
  readonly m: Tensor<"float32">;
  readonly v: Tensor<"float32">;
}
/** Adam with decoupled weight decay (Loshchilov, Hutter 2017, arXiv:1711.05101), updating weights in place. */
export class AdamW {
  readonly #states: ReadonlyMap<string, State>;
  readonly #options: Required<AdamWOptions>;
  #step = 0;
  constructor(parameters: ReadonlyMap<string, Tensor>, options: AdamWOptions = {}) {
    this.#options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, clip: 1, ...options };
    const zero = (t: Tensor): Tensor<"float32"> => zeros(t.shape, { engine: t.engine });
    this.#states = new Map(
      [...parameters].map(([name, t]) => [name, { weight: t as Tensor<"float32">, m: zero(t), v: zero(t) }]),
    );
  }
  /** One update with gradients under the parameters' names. Nothing is looked at on the host, so that a device need not be waited for. */
  step(gradients: ReadonlyMap<string, Tensor>, learningRate: number): void {
    const { clip } = this.#options;
    this.#step++;
    using factor = scope(() => {
      const total = [...gradients.values()]
        .map((g) => sum(unary("square", g) as Tensor<"float32">))
        .reduce((a, b) => binary("add", a, b) as Tensor<"float32">);
      const norm = binary("max", unary("sqrt", total), clip) as Tensor<"float32">;
      return mul(unary("reciprocal", norm) as Tensor<"float32">, clip); // 1 where the norm is not above it
    });
    for (const [name, state] of this.#states)
      scope(() => this.#update(state, gradients.get(name) as Tensor<"float32">, factor, learningRate));
  }
  #update(
    { weight, m, v }: State,
    gradient: Tensor<"float32">,
    factor: Tensor<"float32">,
    learningRate: number,
  ): void {
    const { beta1, beta2, eps, weightDecay } = this.#options;
    const g = mul(gradient, factor);
    binary("mul", m, beta1, m);
    binary("add", m, mul(g, 1 - beta1), m);
    binary("mul", v, beta2, v);
    binary("add", v, mul(unary("square", g) as Tensor<"float32">, 1 - beta2), v);
    const root = unary("sqrt", mul(v, 1 / (1 - beta2 ** this.#step))) as Tensor<"float32">;
    binary("add", root, eps, root);
    const update = binary("div", m, root) as Tensor<"float32">;
    if (weight.rank > 1) binary("mul", weight, 1 - learningRate * weightDecay, weight);
    binary("sub", weight, mul(update, learningRate / (1 - beta1 ** this.#step)), weight);
  }
  /** Frees the moments. */
  [Symbol.dispose](): void {
    for (const { m, v } of this.#states.values()) {
      m[Symbol.dispose]();
      v[Symbol.dispose]();
    }
  }
}
