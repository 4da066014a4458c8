import type { Engine } from "@heed/tensor";
import type { Device } from "../launch.ts";
import { copy } from "./copy.ts";
import { binary, unary } from "./elementwise.ts";
import { gather, scatterAdd } from "./gather.ts";
import { matmul } from "./matmul.ts";
import { reduce } from "./reduce.ts";
import { softmax } from "./softmax.ts";

/** The methods of an engine that compute. */
export type CoreMethods = Pick<
  Engine,
  "copy" | "unary" | "binary" | "reduce" | "matmul" | "softmax" | "gather" | "scatterAdd"
>;
/** The core methods on a device: each plans on the host, writes the argument block and launches. */
export function coreMethods(device: Device): CoreMethods {
  return {
    copy: copy(device),
    unary: unary(device),
    binary: binary(device),
    reduce: reduce(device),
    matmul: matmul(device),
    softmax: softmax(device),
    gather: gather(device),
    scatterAdd: scatterAdd(device),
  };
}
