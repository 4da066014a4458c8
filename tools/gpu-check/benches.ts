import type { CudaEngine } from "@heed/engine-cuda";
import {
  attention,
  attentionVjp,
  copyInto,
  empty,
  kvAppend,
  matmul,
  pagedAttention,
  randn,
  rmsNorm,
  sealPages,
  tensor,
  zeros,
} from "@heed/tensor";
import type { PagedView, Pages, Tensor } from "@heed/tensor";
import { shuffledPages } from "../bench/layout.ts";
import { codePages, counted, groupPages, tensorsOf } from "../bench/storage.ts";
import type { GpuBench, Subject } from "./measure.ts";
import {
  cacheBytesOf,
  type DecodeShape,
  flopsOf,
  nameOf,
  type PrefillShape,
  type RowsShape,
  type Shape,
} from "./shapes.ts";

const PAGE = 64;
/** Forward on wgmma at head size 128: what the design expects of it without overlap, and an eighth below what an H200 gave at 2048 tokens. */
const FORWARD_TARGET = 450e12;
/** What the design asks of a Hopper device in decode, where the batch fills it. */
const DECODE_TARGET = 2.5e12;
/** Norm and append only move bytes: the design asks for 85 % of what a copy reaches on the same device. */
const ROWS_TARGET_SHARE = 0.85;

/** bfloat16 of about 1, random: on zeros a device runs faster. Drawn once and copied on the device. */
function random(engine: CudaEngine, shape: readonly number[], seed: number): Tensor<"bfloat16"> {
  const out = empty(shape, { engine, dtype: "bfloat16" });
  const most = 2 ** 20;
  const flat = out.reshape([out.size]);
  using drawn = randn([Math.min(most, out.size)], { seed, dtype: "bfloat16", engine });
  for (let at = 0; at < out.size; at += most) {
    const end = Math.min(out.size, at + most);
    using to = flat.slice(0, at, end);
    using from = drawn.slice(0, 0, end - at);
    copyInto(from, to);
  }
  flat[Symbol.dispose]();
  return out;
}
function subject(owned: readonly Disposable[], run: () => void): Subject {
  return { run, [Symbol.dispose]: () => owned.forEach((one) => one[Symbol.dispose]()) };
}

function prefill(engine: CudaEngine, shape: PrefillShape): Subject {
  const { kind, batch, length, heads, headDim, causal: isCausal } = shape;
  const operand = (seed: number) => random(engine, [batch, length, heads, headDim], seed);
  const [q, k, v] = [operand(1), operand(2), operand(3)];
  if (kind === "forward") {
    return subject([q, k, v], () => attention(q, k, v, { isCausal, fused: "require" })[Symbol.dispose]());
  }
  const dOut = operand(4);
  const vjp = attentionVjp(q, k, v, { isCausal, fused: "require" });
  return subject([q, k, v, dOut, vjp.output, vjp], () => {
    const { q: dq, k: dk, v: dv } = vjp.backward(dOut);
    for (const t of [dq, dk, dv]) t[Symbol.dispose]();
  });
}

/** Keys and values of a pool, and the tensors to free. */
export interface Pool {
  readonly kPages: Pages;
  readonly vPages: Pages;
  readonly owned: readonly Disposable[];
}
/** P pages in 4 bits, each sealed from the one residual page, of random rows. */
function sealedPool(engine: CudaEngine, P: number, { kvHeads, headDim }: DecodeShape): Pool {
  const page = [1, kvHeads, PAGE, headDim];
  const residual = { k: random(engine, page, 2), v: random(engine, page, 3) };
  const [kPages, vPages] = groupPages(engine, [P, kvHeads, PAGE, headDim], residual);
  using from = zeros([P], { dtype: "int32", engine });
  using to = tensor(counted(P), undefined, { dtype: "int32", engine });
  sealPages(kPages, vPages, from, to);
  return { kPages, vPages, owned: [...tensorsOf([kPages, vPages]), residual.k, residual.v] };
}
/** Pages for the sequences of a shape, with random rows in them. */
export function pool(engine: CudaEngine, shape: DecodeShape): Pool {
  const { batch, length, kvHeads, headDim, valueDim, storage } = shape;
  const P = (batch * length) / PAGE;
  if (storage === "bfloat16") {
    const kPages = random(engine, [P, kvHeads, PAGE, headDim], 2);
    const vPages =
      valueDim < headDim ? kPages.slice(-1, 0, valueDim) : random(engine, [P, kvHeads, PAGE, valueDim], 3);
    return { kPages, vPages, owned: [kPages, vPages] };
  }
  if (storage === "int4") return sealedPool(engine, P, shape);
  const [kPages, vPages] = [2, 3].map(() => codePages(engine, storage, [P, kvHeads, PAGE, headDim]));
  using k = random(engine, [PAGE, kvHeads, headDim], 2);
  using v = random(engine, [PAGE, kvHeads, headDim], 3);
  for (let page = 0; page < P; page++) {
    using slots = tensor(
      counted(PAGE).map((i) => page * PAGE + i),
      undefined,
      { dtype: "int32", engine },
    );
    kvAppend(k, v, kPages!, vPages!, slots);
  }
  return {
    kPages: kPages!,
    vPages: vPages!,
    owned: tensorsOf([kPages!, vPages!]),
  };
}
function decode(engine: CudaEngine, shape: DecodeShape): Subject {
  const { batch, length, heads, headDim } = shape;
  const { kPages, vPages, owned } = pool(engine, shape);
  const int32 = (values: Int32Array<ArrayBuffer>) => tensor(values, undefined, { dtype: "int32", engine });
  const upTo = (step: number) => Int32Array.from({ length: batch + 1 }, (_, n) => n * step);
  const table = {
    queryIndptr: int32(upTo(1)),
    indptr: int32(upTo(length / PAGE)),
    indices: int32(shuffledPages((batch * length) / PAGE)),
    lengths: int32(new Int32Array(batch).fill(length)),
    slots: int32(new Int32Array(batch).fill(-1)),
  };
  const q = random(engine, [batch, heads, headDim], 1);
  const view: PagedView<Pages> = { kPages, vPages, table: { ...table, epoch: 1 } };
  return subject([q, ...Object.values(table), ...owned], () =>
    pagedAttention(q, view, { fused: "require" })[Symbol.dispose](),
  );
}
function rows(engine: CudaEngine, { kind, rows: n, width }: RowsShape): Subject {
  if (kind === "rms norm") {
    const [x, weight] = [random(engine, [n, width], 1), random(engine, [width], 2)];
    return subject([x, weight], () => rmsNorm(x, weight)[Symbol.dispose]());
  }
  const heads = width / 128;
  const [k, v] = [random(engine, [n, heads, 128], 1), random(engine, [n, heads, 128], 2)];
  const pages = [1, 2].map(() => empty([n / PAGE, heads, PAGE, 128], { engine, dtype: "bfloat16" }));
  const slots = tensor(counted(n), undefined, { dtype: "int32", engine });
  return subject([k, v, slots, ...pages], () => kvAppend(k, v, pages[0]!, pages[1]!, slots));
}

/** A shape as a bench. */
export function benchOf(shape: Shape): GpuBench {
  const name = nameOf(shape);
  switch (shape.kind) {
    case "forward":
    case "backward": {
      const numbers = shape.batch * shape.length * shape.heads * shape.headDim;
      const target =
        shape.kind === "forward" && shape.headDim === 128 && !shape.causal && shape.length >= 2048;
      const bench = { name, bound: "flops", work: flopsOf(shape), memory: 32 * numbers } as const;
      return {
        ...bench,
        ...(target && { target: FORWARD_TARGET }),
        open: (engine) => prefill(engine, shape),
      };
    }
    case "decode": {
      const work = cacheBytesOf(shape);
      const target = shape.storage === "bfloat16" && shape.batch >= 16 && shape.valueDim === shape.headDim;
      const bench = { name, bound: "bytes", work, memory: work * 1.1 } as const;
      return { ...bench, ...(target && { target: DECODE_TARGET }), open: (engine) => decode(engine, shape) };
    }
    default: {
      // What is read and what is written, of keys and of values.
      const work = 2 * 2 * shape.rows * shape.width * (shape.kind === "append" ? 2 : 1);
      const bench = { name, bound: "bytes", work, memory: work } as const;
      return { ...bench, targetShare: ROWS_TARGET_SHARE, open: (engine) => rows(engine, shape) };
    }
  }
}

/** What the device can do at most, as far as its own library reaches it: a product of 8192^3 and a copy of 1 GiB. */
export function peakBenches(tiny: boolean): readonly GpuBench[] {
  const n = tiny ? 64 : 8192;
  const numbers = tiny ? 4096 : 2 ** 29;
  const product: GpuBench = {
    name: `product ${n} x ${n} x ${n}`,
    bound: "flops",
    work: 2 * n ** 3,
    memory: 6 * n * n,
    open: (engine) => {
      const [a, b] = [random(engine, [n, n], 1), random(engine, [n, n], 2)];
      return subject([a, b], () => matmul(a, b)[Symbol.dispose]());
    },
  };
  const copy: GpuBench = {
    name: `copy of ${(2 * numbers) / 2 ** 20} MiB`,
    bound: "bytes",
    work: 4 * numbers,
    memory: 4 * numbers,
    open: (engine) => {
      const [from, to] = [random(engine, [numbers], 1), empty([numbers], { engine, dtype: "bfloat16" })];
      return subject([from, to], () => copyInto(from, to));
    },
  };
  return [product, copy];
}
