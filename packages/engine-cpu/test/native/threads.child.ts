/** Results do not depend on how many threads compute them: the same bits with one, two and five. */
import {
  add,
  attention,
  attentionVjp,
  type DType,
  linear,
  matmul,
  normRopeAppend,
  pagedAttention,
  randn,
  rmsNorm,
  rmsNormBackward,
  scope,
  softmax,
  sum,
  tensor,
  type Tensor,
  unary,
} from "@heed/tensor";
import { storedPages } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { cpu, setThreads } from "../../src/index.ts";

const engine = cpu();
/** Values large enough that every kernel cuts its work, at lengths that no tile divides. */
const of = (shape: readonly number[], seed: number, dtype: "float32" | "bfloat16") =>
  randn(shape, { seed, engine, dtype }) as Tensor as Tensor<"float32">;
type Operation = (dtype: "float32" | "bfloat16") => readonly Tensor[];
const qkv = (d: "float32" | "bfloat16") =>
  [of([1, 301, 4, 40], 1, d), of([1, 301, 2, 40], 2, d), of([1, 301, 2, 40], 3, d)] as const;
/** Seven key heads side by side, keys in two parts: one thread walks three heads together, two or five threads one by one. */
const cached = (d: "float32" | "bfloat16") => [of([700, 7, 40], 2, d), of([700, 7, 40], 3, d)] as const;
const inPages =
  (format: "int8" | "float8e4m3" | "int4"): Operation =>
  (d) => {
    const [k, v] = cached(d);
    return [pagedAttention(of([2, 14, 40], 1, d), storedPages(format, k, v, 2, 64))];
  };
const OPERATIONS: Readonly<Record<string, Operation>> = {
  unary: (d) => [unary("exp", of([300_001], 1, d))],
  binary: (d) => [add(of([301, 999], 1, d), of([999], 2, d))],
  copy: (d) => [of([777, 333], 1, d).transpose().contiguous()],
  "sum of everything": (d) => [sum(of([301, 999], 1, d))],
  "sum over rows": (d) => [sum(of([301, 999], 1, d), { axes: [0] })],
  softmax: (d) => [softmax(of([301, 999], 1, d))],
  matmul: (d) => [matmul(of([301, 203], 1, d), of([203, 407], 2, d))],
  "linear of one row": (d) => [linear(of([1, 1999], 1, d), of([1031, 1999], 2, d))],
  rmsNorm: (d) => [rmsNorm(of([301, 999], 1, d), of([999], 2, d))],
  "rmsNorm backward": (d) => {
    const g = rmsNormBackward(of([301, 999], 1, d), of([999], 2, d), of([301, 999], 3, d));
    return [g.x, g.weight!];
  },
  normRopeAppend: (d) => {
    const rows = (heads: number, seed: number) => of([301, heads, 40], seed, d);
    const pages = (seed: number) => of([5, 2, 64, 40], seed, d);
    const int32 = (f: (t: number) => number) =>
      tensor(
        Array.from({ length: 301 }, (_, t) => f(t)),
        [301],
        { engine, dtype: "int32" },
      );
    const target = { kPages: pages(4), vPages: pages(5), slots: int32((t) => (t % 7 === 0 ? -1 : t)) };
    const norm = { q: of([40], 6, d), k: of([2, 40], 7, d) };
    const table = of([50, 20], 8, "float32");
    const rope = { cos: table, sin: table, positions: int32((t) => t % 50) };
    const out = normRopeAppend(rows(8, 1), rows(2, 2), rows(2, 3), target, { norm, rope });
    return [out, target.kPages, target.vPages];
  },
  attention: (d) => [attention(...qkv(d), { isCausal: true })],
  "attention of one query": (d) => {
    const [q, k, v] = qkv(d);
    return [attention(q.slice(1, 0, 1), k, v)];
  },
  "attention of two queries over seven key heads": (d) => {
    const [k, v] = cached(d);
    const q = of([1, 2, 28, 40], 1, d);
    const masked = { isCausal: true, window: { left: 650 }, sinkTokens: 3, sinks: of([28], 4, "float32") };
    return [
      attention(q, k.unsqueeze(0), v.unsqueeze(0)),
      attention(q, k.unsqueeze(0), v.unsqueeze(0), masked),
    ];
  },
  // One thread walks three of seven heads together: the last task has one, and none of the next sequence.
  "attention over pages of two sequences": (d) => {
    const ints = (...list: number[]) => tensor(list, [list.length], { engine, dtype: "int32" });
    const rows = { queryIndptr: ints(0, 1, 2), lengths: ints(100, 30), slots: ints(35, 93), epoch: 0 };
    const table = { ...rows, indptr: ints(0, 2, 3), indices: ints(2, 0, 1) };
    const [kPages, vPages] = [of([4, 7, 64, 40], 2, d), of([4, 7, 64, 40], 3, d)];
    return [pagedAttention(of([2, 14, 40], 1, d), { kPages, vPages, table })];
  },
  "attention over pages of int8": inPages("int8"),
  "attention over pages of e4m3": inPages("float8e4m3"),
  "attention over pages of int4": inPages("int4"),
  "attention backward": (d) => {
    const g = attentionVjp(...qkv(d), { isCausal: true }).backward(of([1, 301, 4, 40], 4, d));
    return [g.q, g.k, g.v];
  },
  "attention with dropout, and backward": (d) => {
    const options = { isCausal: true, dropout: { probability: 0.3, seed: 5 } };
    const { output, backward } = attentionVjp(...qkv(d), options);
    const g = backward(of([1, 301, 4, 40], 4, d));
    return [output, g.q, g.k, g.v];
  },
};
function bits(operation: Operation, dtype: "float32" | "bfloat16", threads: number): Uint8Array[] {
  setThreads(threads);
  return scope(() => operation(dtype).map((t) => bytesOf(t as Tensor<DType>)));
}
function bytesOf(t: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = t.contiguous().data;
  return new Uint8Array(buffer, byteOffset, byteLength).slice();
}
describe("the number of threads changes no bit", () => {
  const cases = Object.keys(OPERATIONS).flatMap((name) =>
    (["float32", "bfloat16"] as const).map((d) => [name, d] as const),
  );
  test.each(cases)("%s of %s", (name, dtype) => {
    const [one, ...others] = [1, 2, 5].map((n) => bits(OPERATIONS[name]!, dtype, n));
    for (const other of others) {
      other.forEach((bytes, i) => expect(Buffer.compare(bytes, one![i]!)).toBe(0));
    }
  });
});
