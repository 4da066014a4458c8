// One step of gradient descent on a grouped-query attention layer: the loss falls.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { binary, mul, randn, scope, sub, sum, type Tensor } from "@heed/tensor";

using layer = GroupedQueryAttention.create({
  hiddenSize: 64,
  numHeads: 4,
  numKvHeads: 2,
  rope: { base: 10000 },
  seed: 1,
});
using x = randn([2, 16, 64], { seed: 2 });
using target = randn([2, 16, 64], { seed: 3 });

/** Half the squared distance from the target, and one update of every parameter. */
async function step(learningRate: number): Promise<number> {
  using squares = scope(() => {
    const pass = layer.vjp(x);
    const difference = sub(pass.output, target); // the gradient of the loss
    const gradients = pass.backward(difference);
    for (const [name, weight] of layer.parameters) {
      binary("sub", weight, mul(gradients.parameters.get(name)! as Tensor<"float32">, learningRate), weight);
    }
    return sum(mul(difference, difference));
  });
  return (await squares.read())[0]! / 2;
}
for (let i = 0; i < 4; i++) console.log(`loss ${(await step(0.05)).toFixed(3)}`);
