import { attention, empty, kvAppend, pagedAttention, scope, sealPages } from "@heed/tensor";
import type { PagedView, Pages, Tensor } from "@heed/tensor";
import { load } from "./engine.ts";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject } from "./harness.ts";
import { headMajorRow, pages, shuffledPages } from "./layout.ts";
import { uniform } from "./random.ts";
import { decodeShapes, decodeWork, describe, peerShape } from "./shapes.ts";
import type { DecodeShape, QuantisedStorage } from "./shapes.ts";

/**
 * One token over a cache of `length` tokens. Contiguous: keys and values lie head-major, as the peer keeps them. Paged:
 * the same rows in pages of 64 tokens, in shuffled order. The peer also appends the last token (a row per head) each time.
 */
export function decodeBenches(engine: BenchEngine): readonly Bench[] {
  return decodeShapes.map((shape) => bench(engine, shape));
}

function bench(engine: BenchEngine, shape: DecodeShape): Bench {
  const { dtype, storage, ...rest } = shape;
  const { pageSize } = shape;
  const ours = {
    name: `decode ${describe(shape)}`,
    dtype: storage ?? dtype,
    shape: { batch: 1, ...rest },
    work: decodeWork(shape),
    open: () => (pageSize === undefined ? contiguous(engine, shape) : paged(engine, shape, pageSize)),
  };
  if (storage !== undefined) return ours; // the peer has no such cache
  return {
    ...ours,
    openPeer(peers) {
      const { query, keyCache, valueCache } = values(shape);
      const key = headMajorRow(keyCache, shape, shape.length - 1);
      const value = headMajorRow(valueCache, shape, shape.length - 1);
      return peers.decode(peerShape(shape, 1), { query, key, value, keyCache, valueCache });
    },
  };
}

function values({ length, numHeads, numKvHeads, headDim }: DecodeShape) {
  const size = length * numKvHeads * headDim;
  return {
    query: uniform(numHeads * headDim, 1),
    keyCache: uniform(size, 2),
    valueCache: uniform(size, 3),
  };
}

function contiguous(engine: BenchEngine, shape: DecodeShape): Subject {
  const { length, numHeads, numKvHeads, headDim, dtype } = shape;
  const data = values(shape);
  const headMajor = [1, numKvHeads, length, headDim];
  const q = engine.upload(data.query, [1, 1, numHeads, headDim], dtype);
  using keys = engine.upload(data.keyCache, headMajor, dtype);
  using cached = engine.upload(data.valueCache, headMajor, dtype);
  const k = keys.transpose(1, 2);
  const v = cached.transpose(1, 2);
  return subject(() => attention(q, k, v, { isCausal: true }), dtype, [q, k, v]);
}

function paged(engine: BenchEngine, shape: DecodeShape, pageSize: number): Subject {
  const { length, numHeads, numKvHeads, headDim, dtype } = shape;
  const data = values(shape);
  const order = shuffledPages(length / pageSize);
  const pageShape = [order.length, numKvHeads, pageSize, headDim];
  const q = engine.upload(data.query, [1, numHeads, headDim], dtype);
  const kPages = engine.upload(pages(data.keyCache, shape, pageSize, order), pageShape, dtype);
  const vPages = engine.upload(pages(data.valueCache, shape, pageSize, order), pageShape, dtype);
  const table = {
    queryIndptr: engine.uploadInt32(Int32Array.of(0, 1), [2]),
    indptr: engine.uploadInt32(Int32Array.of(0, order.length), [2]),
    indices: engine.uploadInt32(order, [order.length]),
    lengths: engine.uploadInt32(Int32Array.of(length), [1]),
    slots: engine.uploadInt32(Int32Array.of(-1), [1]),
  };
  const { storage } = shape;
  const stored =
    storage === undefined ? { kPages, vPages, made: [] } : quantised(engine, storage, kPages, vPages);
  const view: PagedView<Pages> = { ...stored, table: { ...table, epoch: 1 } };
  const owned = [q, kPages, vPages, ...Object.values(table), ...stored.made];
  return subject(() => pagedAttention(q, view), dtype, owned);
}

/** Float pages [P, Hkv, pageSize, D] in a quantised format, written by the operations that a cache writes with. */
function quantised(
  { engine, uploadInt32 }: BenchEngine,
  format: QuantisedStorage,
  k: Tensor,
  v: Tensor,
): { readonly kPages: Pages; readonly vPages: Pages; readonly made: readonly Tensor[] } {
  const [P, Hkv, pageSize, D] = k.shape as unknown as [number, number, number, number];
  const count = (n: number) => Int32Array.from({ length: n }, (_, i) => i);
  const codes = (bytes: number) => empty([P, Hkv, pageSize, bytes], { engine, dtype: "uint8" });
  if (format === "int4") {
    const pages = (residual: Tensor, groups: readonly number[]) => ({
      format,
      codes: codes(16 * Math.ceil(D / 32)),
      scales: empty([P, Hkv, ...groups], { engine }),
      zeros: empty([P, Hkv, ...groups], { engine }),
      residual,
    });
    const kPages = pages(k, [Math.ceil(pageSize / 32), D]);
    const vPages = pages(v, [Math.ceil(D / 32), pageSize]);
    using all = uploadInt32(count(P), [P]);
    sealPages(kPages, vPages, all, all);
    const made = [kPages, vPages].flatMap((p) => [p.codes, p.scales, p.zeros]);
    return { kPages, vPages, made };
  }
  const pages = () => ({ format, codes: codes(D), scales: empty([P, Hkv, pageSize], { engine }) });
  const [kPages, vPages] = [pages(), pages()];
  scope(() => {
    const rows = (t: Tensor) => t.permute(0, 2, 1, 3).contiguous().reshape([-1, Hkv, D]);
    kvAppend(rows(k), rows(v), kPages, vPages, uploadInt32(count(P * pageSize), [P * pageSize]));
  });
  return { kPages, vPages, made: [kPages, vPages].flatMap((p) => [p.codes, p.scales]) };
}

function subject<D extends DecodeShape["dtype"]>(
  step: () => Tensor<D>,
  dtype: D,
  owned: readonly Disposable[],
): Subject {
  return {
    run() {
      using _out = step();
    },
    async read() {
      using out = step();
      return load(await out.read(), dtype);
    },
    [Symbol.dispose]: () => owned.forEach((t) => t[Symbol.dispose]()),
  };
}
