import { attention, kvAppend, pagedAttention, scope, sealPages } from "@heed/tensor";
import type { PagedView, Pages, Tensor } from "@heed/tensor";
import { load } from "./engine.ts";
import type { BenchEngine } from "./engine.ts";
import type { Baseline, Bench, Subject, Target } from "./harness.ts";
import { headMajorRow, pages, shuffledPages } from "./layout.ts";
import { uniform } from "./random.ts";
import { decodeShapes, decodeWork, describe, peerShape } from "./shapes.ts";
import type { DecodeShape, QuantisedStorage } from "./shapes.ts";
import { codePages, counted, groupPages, type PageShape, tensorsOf } from "./storage.ts";

/**
 * One token over a cache of `length` tokens. Contiguous: keys and values lie head-major, as the peer keeps them. Paged:
 * the same rows in pages, in shuffled order, measured against the contiguous cache; quantised pages against float32 ones. The peer also
 * appends the last token (a row per head) each time.
 */
export function decodeBenches(engine: BenchEngine): readonly Bench[] {
  return decodeShapes.map((shape) => bench(engine, shape));
}

function bench(engine: BenchEngine, shape: DecodeShape): Bench {
  const { dtype, storage, ...rest } = shape;
  const { pageSize } = shape;
  const ours = {
    name: `decode ${describe(shape)}`,
    topic: "cache",
    ...aim(engine, shape),
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

/** Speed that quantised pages should have beside float32 ones where memory is the limit. */
const quantisedTarget: Readonly<Record<QuantisedStorage, number>> = { int8: 1.6, float8e4m3: 1.6, int4: 2 };

/** What a shape is measured against, and what it should reach there: the cache's targets are for pages of 64. */
function aim(
  engine: BenchEngine,
  shape: DecodeShape,
): { readonly baseline?: Baseline; readonly target?: Target } {
  const { pageSize, storage, ...contiguousShape } = shape;
  if (pageSize === undefined) return {};
  if (storage === undefined) {
    const baseline = { name: "contiguous", open: () => contiguous(engine, contiguousShape) };
    return pageSize === 64 ? { baseline, target: { leastRatio: 0.9 } } : { baseline };
  }
  const open = () => paged(engine, { ...contiguousShape, pageSize }, pageSize);
  const baseline = { name: "float32 pages", open };
  const isAimed = pageSize === 64 && shape.length === 32768;
  return isAimed ? { baseline, target: { leastRatio: quantisedTarget[storage] } } : { baseline };
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
  const shape = k.shape as unknown as PageShape;
  const [P, Hkv, pageSize, D] = shape;
  if (format === "int4") {
    const [kPages, vPages] = groupPages(engine, shape, { k, v });
    using all = uploadInt32(counted(P), [P]);
    sealPages(kPages, vPages, all, all);
    return { kPages, vPages, made: tensorsOf([kPages, vPages]) };
  }
  const [kPages, vPages] = [codePages(engine, format, shape), codePages(engine, format, shape)];
  scope(() => {
    const rows = (t: Tensor) => t.permute(0, 2, 1, 3).contiguous().reshape([-1, Hkv, D]);
    kvAppend(rows(k), rows(v), kPages, vPages, uploadInt32(counted(P * pageSize), [P * pageSize]));
  });
  return { kPages, vPages, made: tensorsOf([kPages, vPages]) };
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
