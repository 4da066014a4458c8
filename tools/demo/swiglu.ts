import type { LayerVjp, Linear } from "@heed/attention";
import { add, mul, scope, sigmoid, silu, sub, type Tensor } from "@heed/tensor";

type F = Tensor<"float32">;

/** The gated feed-forward block down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202), as Llama has it. */
export class SwiGLU {
  readonly gate: Linear;
  readonly up: Linear;
  readonly down: Linear;
  constructor(gate: Linear, up: Linear, down: Linear) {
    this.gate = gate;
    this.up = up;
    this.down = down;
  }
  /** x [..., hidden] to the same. */
  forward(x: F): F {
    return scope(() => this.down.forward(mul(silu(this.gate.forward(x)), this.up.forward(x))));
  }
  /** {@link forward} with its backward pass; parameters are named "gate_proj.weight" and so on. */
  vjp(x: F): LayerVjp<"float32"> {
    return scope(() => {
      const gate = this.gate.vjp(x);
      const up = this.up.vjp(x);
      const activated = silu(gate.output);
      const down = this.down.vjp(mul(activated, up.output));
      const saved = [gate, up, down].flatMap((v) => v.saved).concat(gate.output, up.output, activated);
      const backward = (dOutput: F): ReturnType<LayerVjp<"float32">["backward"]> =>
        scope(() => {
          const d = down.backward(dOutput);
          const s = sigmoid(gate.output);
          // silu'(g) = s + g s (1 - s) = s + silu(g) - silu(g) s
          const slope = add(s, sub(activated, mul(activated, s)));
          const dGate = gate.backward(mul(mul(d.input, up.output), slope));
          const dUp = up.backward(mul(d.input, activated));
          const parameters = new Map<string, Tensor>();
          for (const [name, g] of [
            ["gate", dGate],
            ["up", dUp],
            ["down", d],
          ] as const) {
            parameters.set(`${name}_proj.weight`, g.parameters.get("weight")!);
          }
          return { input: add(dGate.input, dUp.input), parameters, [Symbol.dispose]: () => {} };
        });
      return {
        output: down.output,
        saved,
        backward,
        [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
      };
    });
  }
}
