import { type DType, tensor, type Tensor, zeros } from "@heed/tensor";
import { Block } from "@heed/tensor/native";
import "@heed/engine-cpu";
import { describe, expect, test } from "bun:test";
import { matrixProduct } from "../../src/core/matmul.ts";
import type { Device, Gemm, Launch } from "../../src/launch.ts";

/** A device that writes down what it is asked for, with a library or without. */
function recorder(hasLibrary: boolean): { device: Device; calls: string[]; products: Gemm[] } {
  const calls: string[] = [];
  const products: Gemm[] = [];
  const device = {
    block: new Block(new ArrayBuffer(4096)),
    limits: { multiprocessors: 132, sharedPerBlock: 232_448, computeCapability: 90, level2Bytes: 50 << 20 },
    launch: ({ kernel }: Launch) => void calls.push(kernel),
    temporary: () => ({ address: 0, [Symbol.dispose]: () => {} }),
    gemm: (product: Gemm) => {
      calls.push("gemm");
      products.push(product);
      return hasLibrary;
    },
  } as Partial<Device> as Device;
  return { device, calls, products };
}
const of = (shape: readonly number[], dtype: DType = "float32"): Tensor =>
  zeros(shape, { dtype, engine: "portable" });

describe("a product on a device with a BLAS library", () => {
  test("goes to it, with the bias in the result beforehand", () => {
    const { device, calls, products } = recorder(true);
    const product = matrixProduct(device);
    using a = of([32, 16]);
    using b = of([16, 24]);
    using out = of([32, 24]);
    using bias = tensor([...Array(24).keys()], undefined, { engine: "portable" });
    product({ a, b, out }, 2, 0.5);
    product({ a, b, out, bias }, 1, 0);
    expect(calls).toEqual(["gemm", "heed_cuda_move", "gemm"]);
    expect(products[0]).toMatchObject({ alpha: 2, beta: 0.5, m: 32, n: 24, k: 16, batch: 1 });
    expect(products[1]).toMatchObject({ alpha: 1, beta: 1 });
  });
  test("takes a batch by its strides", () => {
    const { device, calls, products } = recorder(true);
    using a = of([3, 9, 16]);
    using b = of([3, 16, 24]);
    using out = of([3, 9, 24]);
    matrixProduct(device)({ a, b, out }, 1, 0);
    expect(calls).toEqual(["gemm"]);
    expect(products[0]).toMatchObject({ batch: 3, strideA: 144, strideB: 384, strideC: 216 });
  });
  test("keeps what the library does not take, and few rows, for its own kernels", () => {
    const { device, calls } = recorder(true);
    const product = matrixProduct(device);
    using a = of([32, 16]);
    using weight = of([24, 16]);
    using half = of([16, 24], "bfloat16");
    using turned = weight.transpose();
    using out = of([32, 24]);
    using bias = of([24]);
    product({ a, b: half, out }, 1, 0);
    product({ a, b: turned, out, bias }, 1, 1);
    using row = a.slice(0, 0, 1);
    using first = out.slice(0, 0, 1);
    product({ a: row, b: turned, out: first }, 1, 0);
    expect(calls).toEqual([
      "heed_cuda_matmul_float32_64",
      "heed_cuda_matmul_float32_64",
      "heed_cuda_matmul_float32_one",
    ]);
  });
});
test("a device without a library is asked once, and the own kernels run", () => {
  const { device, calls } = recorder(false);
  const product = matrixProduct(device);
  using a = of([32, 16]);
  using b = of([16, 24]);
  using out = of([32, 24]);
  product({ a, b, out }, 1, 0);
  product({ a, b, out }, 1, 0);
  expect(calls).toEqual(["gemm", "heed_cuda_matmul_float32_64", "heed_cuda_matmul_float32_64"]);
});
