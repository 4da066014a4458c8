import {
  allocate,
  copyInto,
  DTYPES,
  type Engine,
  scope,
  tensor,
  type Tensor,
  unrecorded,
  unscoped,
} from "@heed/tensor";

/** Cosines and sines of angles. */
export interface RopeTable {
  readonly cos: Tensor; // [rows, rotaryDim / 2]
  readonly sin: Tensor;
}
/** Which table: what it lies on, its dtype, and the length in use that its frequencies are for. */
export interface RopeTableKey {
  readonly engine: Engine;
  readonly dtype: "float32" | "float64";
  readonly length: number;
}
/** How a table is filled. */
export interface RopeAngles {
  /** Radians per position of each pair [rotaryDim / 2]. */
  readonly frequencies: Float64Array;
  /** Multiplies cosines and sines. */
  readonly amplitude: number;
}
const FIRST_ROWS = 256; // a table of 256 rows takes 128 KiB for heads of 128
const CHUNK_ROWS = 4096; // rows computed at a time: the host holds no more than that besides the tables

/**
 * One row for each of `rows` tokens, where pair j turns by position(row, j). Angles are computed in float64.
 * Throws OutOfMemoryError.
 */
export function tokenTable(
  { engine, dtype }: Pick<RopeTableKey, "engine" | "dtype">,
  { frequencies, amplitude }: RopeAngles,
  rows: number,
  position: (row: number, pair: number) => number,
): RopeTable {
  const half = frequencies.length;
  const make = (f: (angle: number) => number): Tensor => {
    const values = new DTYPES[dtype].array(rows * half);
    for (let i = 0; i < values.length; i++)
      values[i] = amplitude * f(position(Math.floor(i / half), i % half) * frequencies[i % half]!);
    return tensor(values, [rows, half], { dtype, engine });
  };
  return { cos: make(Math.cos), sin: make(Math.sin) };
}
type Kept = RopeTableKey & RopeTable;

/** Tables of position 0, 1, 2, ..., one per key, that grow by doubling as positions call for. */
export class RopeTables {
  readonly #kept: Kept[] = [];
  readonly #angles: (length: number) => RopeAngles;
  readonly #maxPositions: number;

  constructor(angles: (length: number) => RopeAngles, maxPositions: number) {
    this.#angles = angles;
    this.#maxPositions = maxPositions;
  }
  /** A table of at least `rows` <= maxPositions rows, which stays ours. Throws OutOfMemoryError. */
  get({ engine, dtype, length }: RopeTableKey, rows: number): RopeTable {
    const at = this.#kept.findIndex((k) => k.engine === engine && k.dtype === dtype && k.length === length);
    const old = this.#kept[at];
    if (old !== undefined && rows <= old.cos.shape[0]!) return old;
    let size = old?.cos.shape[0] ?? Math.min(FIRST_ROWS, this.#maxPositions);
    while (size < rows) size = Math.min(2 * size, this.#maxPositions);
    const build = (): Kept => scope(() => this.#build({ engine, dtype, length }, size, old));
    const grown = unrecorded(() => unscoped(build));
    if (old === undefined) this.#kept.push(grown);
    else this.#kept[at] = grown;
    if (old !== undefined) free(old);
    return grown;
  }
  /** A table of `size` rows; the rows of `old` are copied, not computed again. */
  #build(key: RopeTableKey, size: number, old: RopeTable | undefined): Kept {
    const angles = this.#angles(key.length);
    const shape = [size, angles.frequencies.length];
    const cos = allocate(key.engine, key.dtype, shape);
    const sin = allocate(key.engine, key.dtype, shape);
    const put = (part: RopeTable, from: number): number => {
      const to = from + part.cos.shape[0]!;
      copyInto(part.cos, cos.slice(0, from, to));
      copyInto(part.sin, sin.slice(0, from, to));
      return to;
    };
    let row = old === undefined ? 0 : put(old, 0);
    while (row < size) {
      const first = row;
      const rows = Math.min(CHUNK_ROWS, size - first);
      row = scope(() =>
        put(
          tokenTable(key, angles, rows, (r) => first + r),
          first,
        ),
      );
    }
    return { ...key, cos, sin };
  }
  /** Frees all tables; new ones are made when asked for. */
  clear(): void {
    this.#kept.splice(0).forEach(free);
  }
}
function free({ cos, sin }: RopeTable): void {
  cos[Symbol.dispose]();
  sin[Symbol.dispose]();
}
