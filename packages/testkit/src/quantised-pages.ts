import {
  full,
  kvAppend,
  type PagedView,
  type Pages,
  type QuantisedGroups,
  type QuantisedRows,
  sealPages,
  type Tensor,
  tensor,
} from "@heed/tensor";
import type { QuantisedFormat, RowFormat } from "./oracle/quantised.ts";

/** Sizes of a pool of pages and of the rows in it. */
export interface PageSizes {
  readonly engine: string;
  readonly P: number;
  readonly Hkv: number;
  readonly pageSize: number;
  readonly width: number;
}
/** An int32 vector. */
export function int32s(engine: string, values: readonly number[]): Tensor<"int32"> {
  return tensor(Int32Array.from(values), [values.length], { engine, dtype: "int32" });
}
/** Pages with a scale a row, scales NaN until they are written. */
export function rowPages(format: RowFormat, { engine, P, Hkv, pageSize, width }: PageSizes): QuantisedRows {
  return {
    format,
    codes: full([P, Hkv, pageSize, width], 255, { engine, dtype: "uint8" }),
    scales: full([P, Hkv, pageSize], NaN, { engine }),
  };
}
/** "int4" pages with R residual pages. */
export function groupPages(
  role: "keys" | "values",
  { engine, P, Hkv, pageSize, width }: PageSizes,
  R: number,
): QuantisedGroups {
  const groups = role === "keys" ? [Math.ceil(pageSize / 32), width] : [Math.ceil(width / 32), pageSize];
  const bytes = 16 * Math.ceil(width / 32);
  return {
    format: "int4",
    codes: full([P, Hkv, pageSize, bytes], 255, { engine, dtype: "uint8" }),
    scales: full([P, Hkv, ...groups], NaN, { engine }),
    zeros: full([P, Hkv, ...groups], NaN, { engine }),
    residual: full([R, Hkv, pageSize, width], NaN, { engine }),
  };
}
/** Rows k, v [L, Hkv, width] stored as a sequence of their own and queries [T, Hq, width] at its end. */
export function storedPages(
  format: QuantisedFormat,
  k: Tensor,
  v: Tensor,
  queries: number,
  pageSize: number,
): PagedView<Pages> {
  const { name: engine } = k.engine;
  const [L, Hkv, width] = k.shape as unknown as [number, number, number];
  const P = Math.ceil(L / pageSize);
  const sizes = { engine, P, Hkv, pageSize, width };
  const isInt4 = format === "int4";
  const keys = isInt4 ? groupPages("keys", sizes, P) : rowPages(format, sizes);
  const values = isInt4 ? groupPages("values", sizes, P) : rowPages(format, sizes);
  const first = isInt4 ? P * pageSize : 0;
  const slots = int32s(
    engine,
    Array.from({ length: L }, (_, t) => first + t),
  );
  kvAppend(k, v, keys, values, slots);
  const sealed = isInt4 ? Math.floor(L / pageSize) : 0;
  const numbers = Array.from({ length: sealed }, (_, p) => p);
  if (keys.format === "int4" && values.format === "int4")
    sealPages(keys, values, int32s(engine, numbers), int32s(engine, numbers));
  const indices = Array.from({ length: P }, (_, p) => (isInt4 && p >= sealed ? P + p : p));
  const table = {
    queryIndptr: int32s(engine, [0, queries]),
    indptr: int32s(engine, [0, P]),
    indices: int32s(engine, indices),
    lengths: int32s(engine, [L]),
    slots,
    epoch: 0,
  };
  return { kPages: keys, vPages: values, table };
}
