/** Attention with sink tokens over pages, NaN in every slot that no query sees, on the engine under test and by the oracle. */
import { type Pages, pagedAttentionWithLse, type PagedView, type Tensor } from "@heed/tensor";
import {
  createRng,
  isVisible,
  type PagedProblem,
  pagedAttentionOracle,
  type PagedResult,
  roundArray,
} from "@heed/testkit";
import { quantisedPages, sealing } from "@heed/testkit/conformance/quantised-pages";
import { place, placeInt32, poisonedEngine, results } from "@heed/testkit/conformance/subject";
import { ENGINE } from "../support.ts";

/** How keys and values stand in pages; "latent": values are the first Dv numbers of the keys. */
export type Storage = "float" | "float32" | "int8" | "float8e4m3" | "int4" | "latent";
export interface SinkProblem {
  readonly dtype: "bfloat16" | "float16";
  readonly storage: Storage;
  readonly G: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly pageSize: number;
  /** Each sequence's keys, and how many of the last are queries. */
  readonly sequences: readonly { readonly length: number; readonly queries: number }[];
  readonly left?: number | undefined;
  readonly sinkTokens: number;
  /** The first number of this token's values in every sequence, and what it is; with latent rows of its key too. */
  readonly odd?: { readonly token: number; readonly value: number } | undefined;
  readonly seed: number;
}
const running = (n: readonly number[]): Int32Array => {
  const sums = [0];
  for (const x of n) sums.push(sums.at(-1)! + x);
  return Int32Array.from(sums);
};
function tableOf({ sequences, pageSize, seed }: SinkProblem): PagedProblem {
  const indptr = running(sequences.map(({ length }) => Math.ceil(length / pageSize)));
  const numPages = indptr.at(-1)! + 1; // page 0 is in no table
  const queryIndptr = running(sequences.map(({ queries }) => queries));
  const dealt = createRng(seed).permutation(numPages - 1);
  return {
    pageSize,
    queryIndptr,
    indptr,
    indices: Int32Array.from(dealt, (page) => page + 1),
    lengths: Int32Array.from(sequences, ({ length }) => length),
    numPages,
    T: queryIndptr.at(-1)!,
    seed,
  };
}
const rulesOf = ({ left, sinkTokens }: SinkProblem) => ({
  window: left === undefined ? {} : { left },
  sinkTokens,
});

/** Slots [P * pageSize] that some query sees. */
function seenSlots(p: SinkProblem, { pageSize, indptr, indices, numPages }: PagedProblem): boolean[] {
  const seen = Array.from({ length: numPages * pageSize }, () => false);
  p.sequences.forEach(({ length, queries }, n) => {
    const dims = { B: 1, S: queries, Sk: length, Hq: 1, Hkv: 1, D: 1, Dv: 1 };
    const sees = (j: number): boolean =>
      Array.from({ length: queries }, (_, i) => i).some((i) =>
        isVisible({ dims, isCausal: true, ...rulesOf(p) }, 0, 0, i, j),
      );
    for (let j = 0; j < length; j++)
      seen[indices[indptr[n]! + Math.floor(j / pageSize)]! * pageSize + (j % pageSize)] = sees(j);
  });
  return seen;
}
/** values [P, Hkv, pageSize, width] with NaN in the slots that nobody sees; in whole pages where the slots of a page share scales. */
function withHidden(
  p: SinkProblem,
  values: Float64Array,
  width: number,
  seen: readonly boolean[],
  byPage: boolean,
): Float64Array {
  const { Hkv, pageSize } = p;
  const poisoned = values.slice();
  seen.forEach((_, slot) => {
    const page = Math.floor(slot / pageSize);
    const isSeen = byPage ? seen.slice(page * pageSize, (page + 1) * pageSize).includes(true) : seen[slot]!;
    if (isSeen) return;
    for (let h = 0; h < Hkv; h++) {
      const row = ((page * Hkv + h) * pageSize + (slot % pageSize)) * width;
      poisoned.fill(NaN, row, row + width);
    }
  });
  return poisoned;
}
/** Puts a problem's odd number into values [P, Hkv, pageSize, width]. */
function putOdd(
  { odd, Hkv, pageSize, sequences }: SinkProblem,
  values: Float64Array,
  width: number,
  table: PagedProblem,
): void {
  if (odd === undefined) return;
  sequences.forEach(({ length }, n) => {
    if (odd.token >= length) return;
    const page = table.indices[table.indptr[n]! + Math.floor(odd.token / pageSize)]!;
    for (let h = 0; h < Hkv; h++)
      values[((page * Hkv + h) * pageSize + (odd.token % pageSize)) * width] = odd.value;
  });
}
interface Placed {
  readonly k: Pages;
  readonly v: Pages;
}
interface Operands {
  readonly table: PagedProblem;
  readonly numbers: Int32Array;
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  place(): Placed;
}
const engine = poisonedEngine(ENGINE);

/** Operands of a problem; with `hidden` NaN where nobody looks. */
function operands(p: SinkProblem, hidden: boolean): Operands {
  const { dtype, storage, Hkv, G, D, Dv, pageSize } = p;
  const table = tableOf(p);
  const { numPages: P, T, seed } = table;
  const rng = createRng(seed);
  const isFloat = storage === "float" || storage === "latent";
  const seen = seenSlots(p, table);
  const q = roundArray(dtype, rng.normalArray(T * Hkv * G * D));
  const numbers = (width: number, role: "keys" | "values"): Float64Array => {
    const values = roundArray(isFloat ? dtype : "float32", rng.normalArray(P * Hkv * pageSize * width));
    if (role === "values" || storage === "latent") putOdd(p, values, width, table);
    return hidden ? withHidden(p, values, width, seen, storage === "int4" && role === "keys") : values;
  };
  const k = numbers(D, "keys");
  const own = numbers(Dv, "values");
  const v = storage === "latent" ? k.filter((_, i) => i % D < Dv) : own;
  const same = Int32Array.from({ length: P }, (_, page) => page);
  if (isFloat || storage === "float32") {
    const put = (x: Float64Array, width: number): Tensor =>
      place(engine, isFloat ? dtype : "float32", x, [P, Hkv, pageSize, width]);
    const both = (): Placed => {
      const keys = put(k, D);
      return { k: keys as never, v: (storage === "latent" ? keys.slice(3, 0, Dv) : put(v, Dv)) as never };
    };
    return { table, numbers: same, q, k, v, place: both };
  }
  const seals = sealing(Array.from({ length: P }, (_, page) => page % 3 !== 1));
  const [keys, values] = (["keys", "values"] as const).map((role) =>
    quantisedPages(
      storage,
      role === "keys" ? k : v,
      { P, Hkv, pageSize, width: role === "keys" ? D : Dv, role },
      seals,
    ),
  );
  return {
    table,
    numbers: storage === "int4" ? seals.numbers : same,
    q,
    k: keys!.values,
    v: values!.values,
    place: () => ({ k: keys!.place(engine), v: values!.place(engine) }),
  };
}
/** Sequence `n` of a table alone, with the pages it has there. */
function alone({ queryIndptr, indptr, indices, lengths, ...rest }: PagedProblem, n: number): PagedProblem {
  const T = queryIndptr[n + 1]! - queryIndptr[n]!;
  const pages = indices.slice(indptr[n], indptr[n + 1]);
  return {
    ...rest,
    T,
    queryIndptr: running([T]),
    indptr: running([pages.length]),
    indices: pages,
    lengths: lengths.slice(n, n + 1),
  };
}
/** Output and lse of a problem by the engine's kernel, with NaN in every slot that nobody sees; of all sequences, or of one alone. */
export function runPages(
  p: SinkProblem,
  { hidden = true, only }: { readonly hidden?: boolean; readonly only?: number } = {},
): Promise<{ out: Float64Array; lse: Float64Array }> {
  const { table: all, numbers, q, place: put } = operands(p, hidden);
  const table = only === undefined ? all : alone(all, only);
  const width = p.Hkv * p.G * p.D;
  const first = (only === undefined ? 0 : all.queryIndptr[only]!) * width;
  return results(() => {
    const { k: kPages, v: vPages } = put();
    const pages = table.indices.map((page) => numbers[page]!);
    const view: PagedView<Pages> = {
      kPages,
      vPages,
      table: {
        queryIndptr: placeInt32(engine, table.queryIndptr),
        indptr: placeInt32(engine, table.indptr),
        indices: placeInt32(engine, pages),
        lengths: placeInt32(engine, table.lengths),
        slots: placeInt32(engine, new Int32Array(table.T).fill(-1)),
        epoch: 0,
      },
    };
    const rows = q.subarray(first, first + table.T * width);
    const queries = place(engine, p.dtype, rows, [table.T, p.Hkv * p.G, p.D]);
    const { output, lse } = pagedAttentionWithLse(queries, view, { ...rulesOf(p), fused: "require" });
    return { out: output, lse };
  });
}
/** The same by the oracle. */
export function byOracle(p: SinkProblem): PagedResult {
  const { table, q, k, v } = operands(p, false);
  const { G, Hkv, D, Dv } = p;
  return pagedAttentionOracle(q, k, v, { Hq: G * Hkv, Hkv, D, Dv, table, isCausal: true, ...rulesOf(p) });
}
