import { empty, kvAppend, normRopeAppend, sealPages } from "@heed/tensor";
import type { Pages, Tensor } from "@heed/tensor";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject } from "./harness.ts";
import { shuffledPages } from "./layout.ts";
import { uniform } from "./random.ts";
import { bytesPerElement, quantisedBytes } from "./shapes.ts";
import type { BenchDType, QuantisedStorage } from "./shapes.ts";
import { codePages, counted, groupPages, tensorsOf } from "./storage.ts";

const HQ = 32;
const HKV = 8;
const D = 128;

/** Rows into pages of every storage; then norm, rotation and append in one pass, and one operation after the other. */
export function appendBenches(engine: BenchEngine): readonly Bench[] {
  return [...rowBenches(engine), ...normBenches(engine)];
}

type Storage = BenchDType | QuantisedStorage;

/** What one append of float32 rows does: a token of each of 256 sequences, or a long prompt's tokens. */
interface Append {
  readonly storage: Storage;
  readonly tokens: number;
  readonly pageSize: number;
}

function rowBenches(engine: BenchEngine): readonly Bench[] {
  const storages = ["float32", "float16", "bfloat16", "int8", "float8e4m3", "int4"] as const;
  const appends: Append[] = storages.flatMap((storage) =>
    [256, 8192].map((tokens) => ({ storage, tokens, pageSize: 64 })),
  );
  for (const pageSize of [16, 256]) appends.push({ storage: "float32", tokens: 8192, pageSize });
  return appends.map((append) => {
    const { storage, tokens, pageSize } = append;
    const stored = isFloat(storage) ? bytesPerElement[storage] : quantisedBytes(storage, pageSize);
    return {
      name: `append ${HKV} d${D} ${tokens} rows as ${storage} pages of ${pageSize}`,
      topic: "cache",
      dtype: storage,
      shape: { tokens, numKvHeads: HKV, headDim: D, pageSize },
      work: { bound: "read", bytes: 2 * tokens * HKV * D * (4 + stored) },
      open: () => openRows(engine, append),
    };
  });
}
function isFloat(storage: Storage): storage is BenchDType {
  return storage in bytesPerElement;
}

/**
 * Rows of a prompt fill pages that lie in shuffled order; a token of each sequence goes to a page of its own. With int4 rows go to
 * residual pages, and as many pages are sealed as the tokens fill on average.
 */
function openRows({ engine, upload, uploadInt32 }: BenchEngine, append: Append): Subject {
  const { storage, tokens, pageSize } = append;
  const isPrompt = tokens > 256;
  const P = isPrompt ? tokens / pageSize : tokens;
  const shape = [P, HKV, pageSize, D] as const;
  const order = shuffledPages(P);
  const slotOf = (t: number) =>
    isPrompt
      ? order[Math.floor(t / pageSize)]! * pageSize + (t % pageSize)
      : order[t]! * pageSize + ((7 * t) % pageSize);
  const rows = [1, 2].map((seed) => upload(uniform(tokens * HKV * D, seed), [tokens, HKV, D], "float32"));
  const [k, v] = rows as [Tensor, Tensor];
  const floats = () => empty([...shape], { engine, dtype: isFloat(storage) ? storage : "float32" });
  const first = storage === "int4" ? P * pageSize : 0; // residual pages come behind the others
  const slots = uploadInt32(
    counted(tokens).map((t) => first + slotOf(t)),
    [tokens],
  );
  const owned: Disposable[] = [k, v, slots];
  if (storage === "int4") {
    const residual = { k: floats(), v: floats() };
    const [kPages, vPages] = groupPages(engine, shape, residual);
    const full = uploadInt32(counted(tokens / pageSize), [tokens / pageSize]);
    owned.push(residual.k, residual.v, full, ...tensorsOf([kPages, vPages]));
    return subject(owned, () => {
      kvAppend(k, v, kPages, vPages, slots);
      sealPages(kPages, vPages, full, full);
    });
  }
  const [kPages, vPages]: Pages[] = isFloat(storage)
    ? [floats(), floats()]
    : [codePages(engine, storage, shape), codePages(engine, storage, shape)];
  for (const pages of [kPages!, vPages!]) owned.push(...("format" in pages ? tensorsOf([pages]) : [pages]));
  return subject(owned, () => kvAppend(k, v, kPages!, vPages!, slots));
}

function subject(owned: readonly Disposable[], run: () => void): Subject {
  return { run, [Symbol.dispose]: () => owned.forEach((t) => t[Symbol.dispose]()) };
}

function normBenches(engine: BenchEngine): readonly Bench[] {
  return [1, 512].flatMap((tokens) =>
    [true, false].map((isFused) => ({
      name: `append ${HQ}/${HKV} d${D} ${tokens} float32 norm and rotation${isFused ? "" : ", parts apart"}`,
      topic: "cache",
      dtype: "float32",
      shape: { tokens, numHeads: HQ, numKvHeads: HKV, headDim: D },
      work: { bound: "read" as const, bytes: 4 * tokens * (HQ + 2 * HKV) * D },
      open: () => open(engine, tokens, isFused),
    })),
  );
}

function open(engine: BenchEngine, tokens: number, isFused: boolean): Subject {
  const product = engine.upload(
    uniform(tokens * (HQ + 2 * HKV) * D, 1),
    [tokens, (HQ + 2 * HKV) * D],
    "float32",
  );
  let at = 0;
  const heads = [HQ, HKV, HKV].map((count) => {
    using flat = product.slice(1, at, (at += count * D));
    return flat.reshape([tokens, count, D]);
  });
  const [q, k, v] = heads as [typeof product, typeof product, typeof product];
  const pages = (seed: number) => engine.upload(uniform(9 * HKV * 64 * D, seed), [9, HKV, 64, D], "float32");
  const order = Int32Array.from({ length: tokens }, (_, t) => t);
  const slots = engine.uploadInt32(
    order.map((t) => t + 64),
    [tokens],
  );
  const target = { kPages: pages(2), vPages: pages(3), slots };
  const positions = engine.uploadInt32(order, [tokens]);
  const table = engine.upload(uniform((tokens * D) / 2, 4), [tokens, D / 2], "float32");
  const weight = engine.upload(uniform(D, 5), [D], "float32");
  const options = {
    norm: { q: weight, k: weight },
    rope: { cos: table, sin: table, positions },
    fused: isFused ? ("require" as const) : ("off" as const),
  };
  return subject([product, ...heads, ...Object.values(target), positions, table, weight], () => {
    using _out = normRopeAppend(q, k, v, target, options);
  });
}
