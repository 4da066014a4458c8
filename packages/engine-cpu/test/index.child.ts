/** Imports the package as if on a platform without a library, and prints what it offers. */
import { engineNames, getEngine, matmul, tensor } from "@heed/tensor";

Object.defineProperty(process, "platform", { value: "plan9" });
const api = await import("../src/index.ts");

using a = tensor([[1, 2]]);
using b = tensor([[3], [4]]);
using c = matmul(a, b);
let refusal: unknown;
try {
  api.cpu();
} catch (error) {
  refusal = { code: (error as { code: string }).code, message: (error as Error).message };
}
const { name, description } = getEngine();
const { floorReason } = api;
console.log(
  JSON.stringify({ names: engineNames(), name, description, floorReason, product: c.data[0], refusal }),
);
