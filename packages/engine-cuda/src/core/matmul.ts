import type { Engine, FusedOp, LinearPlan } from "@heed/tensor";
import { MATMUL, type MatmulOperands } from "@heed/tensor/native";
import type { Device } from "../launch.ts";
import { sizeOf } from "./axes.ts";
import { copy } from "./copy.ts";
import { gemmOf, isFew, type Product, productLaunch, productOf } from "./product.ts";
import { MATMUL_ARGS } from "./structs.ts";
import { addressOf } from "./view.ts";

/** out = alpha * a @ b + beta * out + bias: by the library where there is one and it takes these strides, else by the own kernels. */
export type MatrixProduct = (operands: MatmulOperands, alpha: number, beta: number) => void;

function writeProduct(
  device: Device,
  { a, b, out, bias }: MatmulOperands,
  p: Product,
  alpha: number,
  beta: number,
): void {
  const { block } = device;
  const { fields } = MATMUL;
  const [ofOut, ofA, ofB] = p.batch.strides as [number[], number[], number[]];
  const lead = p.batch.shape;
  block.begin(MATMUL_ARGS.bytes, 0);
  block.float64(fields.alpha, alpha);
  block.float64(fields.beta, beta);
  block.view(fields.a, addressOf(a), a.dtype, [...lead, p.M, p.K], [...ofA, ...p.a]);
  block.view(fields.b, addressOf(b), b.dtype, [...lead, p.K, p.N], [...ofB, ...p.b]);
  block.view(fields.out, addressOf(out), out.dtype, [...lead, p.M, p.N], [...ofOut, ...p.out]);
  block.tensor(fields.bias, bias);
  block.int64(MATMUL_ARGS.fields.matrices, sizeOf(lead));
}
/** The product of a device. */
export function matrixProduct(device: Device): MatrixProduct {
  const copyTo = copy(device);
  let hasLibrary = true; // until it says otherwise
  /** By the library. A bias goes into out beforehand, where the product is added to it: rounded once, as it has out's dtype. */
  const byLibrary = (operands: MatmulOperands, p: Product, alpha: number, beta: number): boolean => {
    const { a, b, out, bias } = operands;
    if (!hasLibrary || isFew(p) || a.dtype !== b.dtype || (bias !== undefined && beta !== 0)) return false;
    const at = { a: addressOf(a), b: addressOf(b), out: addressOf(out) };
    const gemm = gemmOf(a.dtype, p, at, alpha, bias === undefined ? beta : 1);
    if (gemm === undefined) return false;
    if (bias !== undefined) {
      using spread = bias.broadcastTo(out.shape);
      copyTo(spread, out);
    }
    hasLibrary = device.gemm(gemm);
    return hasLibrary;
  };
  return (operands, alpha, beta) => {
    const { a, b, out } = operands;
    const p = productOf(a, b, out);
    if (byLibrary(operands, p, alpha, beta)) return;
    writeProduct(device, operands, p, alpha, beta);
    device.launch(productLaunch(a.dtype, p, device.limits), MATMUL_ARGS.bytes);
  };
}
/** out[..., M, N] = alpha * a @ b + beta * out. */
export function matmul(device: Device): Engine["matmul"] {
  const product = matrixProduct(device);
  return (a, b, out, alpha, beta) => product({ a, b, out }, alpha, beta);
}
/** out = x @ weight^T + bias: the transpose is a pair of strides, the bias is added before the one rounding. */
export function linear(device: Device): FusedOp<LinearPlan> {
  const product = matrixProduct(device);
  return {
    refusal: () => undefined,
    run: ({ x, weight, bias, out }) => {
      using transposed = weight.transpose();
      product({ a: x, b: transposed, out, bias }, 1, 0);
    },
  };
}
