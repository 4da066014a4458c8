import {
  type BlockTableReader,
  type FloatDType,
  full,
  kvAppend,
  type PagedView,
  tensor,
  type Tensor,
  type Engine,
} from "@heed/tensor";

const PAGE_SIZE = 4;
/** How {@link createPages} lays its pages out. */
export interface PagesOptions {
  readonly layers?: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly dtype: FloatDType;
  readonly engine: Engine;
}
/** Pages of a few sequences, filled with NaN, and readers of steps over them. Page numbers are scattered. */
export interface Pages {
  /** A step that appends so many tokens to each sequence; lengths move at once. */
  step(tokens: readonly number[]): BlockTableReader;
}
/**
 * The smallest cache that a layer can read through: sequence n owns pages 3n .. 3n + 2 from the back, so
 * holds 12 tokens.
 */
export function createPages(sequences: number, o: PagesOptions): Pages {
  const count = 3 * sequences + 1;
  const make = (): Tensor =>
    full([count, o.numKvHeads, PAGE_SIZE, o.headDim], NaN, { dtype: o.dtype, engine: o.engine });
  const layers = Array.from({ length: o.layers ?? 1 }, () => ({ kPages: make(), vPages: make() }));
  const lengths = new Array<number>(sequences).fill(0);
  let epoch = 0;
  const int32 = (values: readonly number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine: o.engine });
  const pageOf = (n: number, i: number): number => count - 1 - (3 * n + i);
  return {
    step(tokens) {
      const starts = [...lengths];
      tokens.forEach((t, n) => (lengths[n] = lengths[n]! + t));
      const where = tokens.flatMap((t, n) =>
        Array.from({ length: t }, (_, i) => ({ n, position: starts[n]! + i })),
      );
      const slot = ({ n, position }: { n: number; position: number }): number =>
        pageOf(n, Math.floor(position / PAGE_SIZE)) * PAGE_SIZE + (position % PAGE_SIZE);
      const used = lengths.map((length) => Math.ceil(length / PAGE_SIZE));
      const sums = (counts: readonly number[]): number[] => [
        0,
        ...counts.map((_, n) => counts.slice(0, n + 1).reduce((a, b) => a + b, 0)),
      ];
      const table = {
        queryIndptr: int32(sums(tokens)),
        indptr: int32(sums(used)),
        indices: int32(used.flatMap((n, s) => Array.from({ length: n }, (_, i) => pageOf(s, i)))),
        lengths: int32(lengths),
        slots: int32(where.map(slot)),
        epoch: ++epoch,
      };
      const view = (layer: number): PagedView => ({ ...layers[layer]!, table });
      return {
        positions: int32(where.map(({ position }) => position)),
        write: (layer, k, v) => kvAppend(k, v!, layers[layer]!.kPages, layers[layer]!.vPages, table.slots),
        view,
      };
    },
  };
}
