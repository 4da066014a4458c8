// Tensors: views copy nothing, `using` and `scope` free, errors are typed.
import "./engine.ts";
import { add, matmul, memoryUsage, randn, scope, ShapeError, softmax, tensor } from "@heed/tensor";

using x = tensor([
  [1, 2, 3],
  [4, 5, 6],
]); // float32[2, 3] on the default engine
using column = x.slice(1, 0, 1).transpose(); // a view: float32[1, 2]
console.log(`${x} ${column}`, await column.read());

// Everything made inside the scope is freed, except what is returned.
using y = scope(() => softmax(matmul(add(x, 1), randn([3, 4], { seed: 7 }))));
console.log(`${y}`, await y.read());
console.log("live storages:", memoryUsage().storages);

try {
  matmul(x, x);
} catch (error) {
  if (error instanceof ShapeError) console.log(error.code, error.message);
}
