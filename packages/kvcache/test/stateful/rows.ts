/** What pages hold and what they should: the numbers of float rows, codes and scales of 8-bit ones, and what int4 pages stand for. */
import { type Pages, type PagedView, type QuantisedGroups, scope, Tensor, toFloat64 } from "@heed/tensor";
import { encodeRowOracle } from "@heed/testkit";
import { isQuantised } from "../../src/layout.ts";
import type { GroupLayout, KvCache, Step } from "../../src/index.ts";
import { floats, layoutOf, pageValues, rowDType, rowsFor } from "../fixtures.ts";
import { encodedRows, groupNumbers } from "../int4-fixtures.ts";

/** Numbers of all pages, [P, Hkv, pageSize, width] each; a row is made of its numbers in each plane. */
export type Planes = readonly { readonly values: ArrayLike<number>; readonly width: number }[];
/** The numbers of one token's row in each plane, [Hkv, width]. */
export type Row = readonly (readonly number[])[];

/** A value for every position that stands for what leads to it: of a seed and of every id. */
export function chain(seed: number, ids: readonly number[]): number[] {
  let hash = seed;
  return ids.map((id) => (hash = Math.imul(hash ^ (id + 1), 0x9e3779b1) ^ (hash >>> 15)));
}
/** Writes one layer's rows of a step whose tokens have these values; quantised pages get float32. */
export function writeRows(cache: KvCache, step: Step, values: ArrayLike<number>, layer: number): void {
  const group = layoutOf(cache, layer);
  const dtype = rowDType(group.dtype);
  scope(() => {
    const make = (part: "k" | "v", width: number): Tensor => {
      const shape = [values.length, group.numKvHeads, width];
      return floats(rowsFor(cache, values, layer, part), shape, dtype, cache.engine);
    };
    if (group.valuesInKeys) step.write(layer, make("k", group.headDim));
    else step.write(layer, make("k", group.headDim), make("v", group.valueHeadDim));
  });
}
/** Pages [P, Hkv, pageSize, width] and the residual pages behind them as numbers. */
function allNumbers(pages: QuantisedGroups, part: "k" | "v"): Float64Array {
  return scope(() => {
    const sealed = groupNumbers(pages, part);
    const waiting = toFloat64(pages.residual.contiguous());
    const all = new Float64Array(sealed.length + waiting.length);
    all.set(sealed);
    all.set(waiting, sealed.length);
    return all;
  });
}
/** All pages of a layer as numbers, by the names that tables have for them: keys, values, and the scales of each. */
export function planesOf({ kPages, vPages }: PagedView<Pages>): Planes {
  return [kPages, vPages].flatMap((pages, part): Planes => {
    if (pages instanceof Tensor) return [{ values: pageValues(pages), width: pages.shape[3]! }];
    if (pages.format === "int4")
      return [{ values: allNumbers(pages, part === 0 ? "k" : "v"), width: pages.residual.shape[3]! }];
    const { codes, scales } = pages;
    const numbers = (of: Tensor): ArrayLike<number> =>
      scope(() => of.contiguous().data.slice() as Uint8Array | Float32Array);
    return [
      { values: numbers(codes), width: codes.shape[3]! },
      { values: numbers(scales), width: 1 },
    ];
  });
}
/** The row at a place of a page. */
export function rowAt(planes: Planes, group: GroupLayout, page: number, at: number): Row {
  return planes.map(({ values, width }) => {
    const row: number[] = [];
    for (let h = 0; h < group.numKvHeads; h++) {
      const first = ((page * group.numKvHeads + h) * group.pageSize + at) * width;
      for (let d = 0; d < width; d++) row.push(values[first + d]!);
    }
    return row;
  });
}
/** Rows as they should be; each is made once, in tests that ask for them again and again. */
export class ExpectedRows {
  readonly #cache: KvCache;
  readonly #known = new Map<number, Row[]>();
  readonly #pages = new Map<string, readonly Row[]>();
  constructor(cache: KvCache) {
    this.#cache = cache;
  }
  /** The row that a layer should have for a token of this value. */
  row(value: number, layer: number): Row {
    if (this.#known.size > 4096) this.#known.clear();
    let rows = this.#known.get(value);
    if (rows === undefined) this.#known.set(value, (rows = []));
    return (rows[layer] ??= this.#make(value, layer));
  }
  /** The rows of an encoded page whose tokens have these values. */
  encoded(values: readonly number[], layer: number): readonly Row[] {
    const key = `${layer}:${values.join()}`;
    if (this.#pages.size > 4096) this.#pages.clear();
    let rows = this.#pages.get(key);
    if (rows === undefined) {
      const group = layoutOf(this.#cache, layer);
      const [k, v] = (["k", "v"] as const).map((part) => {
        const width = part === "k" ? group.headDim : group.valueHeadDim;
        const heads = group.numKvHeads * width;
        const all = rowsFor(this.#cache, values, layer, part);
        return encodedRows(
          values.map((_, t) => Float64Array.from(all.slice(t * heads, (t + 1) * heads))),
          width,
          part,
        );
      });
      this.#pages.set(key, (rows = values.map((_, t): Row => [[...k![t]!], [...v![t]!]])));
    }
    return rows;
  }
  #make(value: number, layer: number): Row {
    const { dtype, headDim, valueHeadDim, valuesInKeys } = layoutOf(this.#cache, layer);
    return (["k", "v"] as const).flatMap((part) => {
      const stored = valuesInKeys ? "k" : part;
      const numbers = rowsFor(this.#cache, [value], layer, stored);
      const [width, shown] = [stored === "k" ? headDim : valueHeadDim, part === "k" ? headDim : valueHeadDim];
      const heads = Array.from({ length: numbers.length / width }, (_, h) =>
        numbers.slice(h * width, (h + 1) * width),
      );
      if (!isQuantised(dtype)) return [heads.flatMap((head) => head.slice(0, shown))];
      const encoded = heads.map((head) => encodeRowOracle(dtype, head));
      return [encoded.flatMap(({ codes }) => [...codes].slice(0, shown)), encoded.map(({ scale }) => scale)];
    });
  }
}
/** Whether two rows are the same, bit for bit but for the sign of zero. */
export function isSame(a: Row, b: Row): boolean {
  return a.length === b.length && a.every((part, i) => part.every((x, d) => x === b[i]![d]));
}
