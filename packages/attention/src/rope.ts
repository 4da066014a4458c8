import {
  accumulatorOf,
  adopt,
  allocate,
  arange,
  ArgumentError,
  copyInto,
  DisposedError,
  DTYPES,
  type Engine,
  type FloatDType,
  rope,
  ropeBackward,
  scope,
  show,
  tensor,
  type Tensor,
  unscoped,
} from "@heed/tensor";
import { positive, wholeNumber } from "./check.ts";
import { ropeFrequencies, type RopeScaling } from "./rope-scaling.ts";

/** Options of {@link RotaryEmbedding}. */
export interface RotaryEmbeddingOptions {
  /** Components of a head that turn: even, at most the head size; the rest passes through. */
  readonly rotaryDim: number;
  /** Default 10000. */
  readonly base?: number | undefined;
  /**
   * "half" (default): pairs (j, j + rotaryDim / 2), as Hugging Face stores weights. "interleaved": (2j, 2j +
   * 1), as Meta does.
   */
  readonly pairing?: "half" | "interleaved" | undefined;
  /**
   * Positions from this on are errors. Default 2^20. The tables grow up to it as positions call for, so a
   * large one costs nothing.
   */
  readonly maxPositions?: number | undefined;
  /** Default none. */
  readonly scaling?: RopeScaling | undefined;
}
/** Options with their defaults filled in, as plain JSON. */
export type RotaryEmbeddingConfig = {
  readonly [K in keyof RotaryEmbeddingOptions]-?: Exclude<RotaryEmbeddingOptions[K], undefined>;
};
/**
 * Where tokens stand: int32 [B, S], or [S] for all sequences alike, or the number of the first token's
 * position.
 */
export type Positions = number | Tensor<"int32">;

interface Tables {
  readonly engine: Engine;
  readonly dtype: "float32" | "float64";
  readonly cos: Tensor; // [rows, rotaryDim / 2]
  readonly sin: Tensor;
}
const FIRST_ROWS = 256; // a table of 256 rows takes 128 KiB for heads of 128
const CHUNK_ROWS = 4096; // rows computed at a time: the host holds no more than that besides the tables

/**
 * Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of components turn by position *
 * frequency. Angles are computed in float64 and their cosines and sines rounded once to float32 (float64 for
 * float64 tensors). The tables are kept per engine and dtype and grow by doubling. May be shared by layers.
 */
export class RotaryEmbedding {
  readonly #options: RotaryEmbeddingConfig;
  readonly #frequencies: Float64Array;
  readonly #tables: Tables[] = [];
  #disposed = false;

  /** Throws ArgumentError. */
  constructor(options: RotaryEmbeddingOptions) {
    const { base = 10000, pairing = "half", maxPositions = 2 ** 20, scaling = { type: "none" } } = options;
    const rotaryDim = wholeNumber("RotaryEmbedding", "rotaryDim", options.rotaryDim, 2);
    if (rotaryDim % 2 !== 0)
      throw new ArgumentError(`[RotaryEmbedding] rotaryDim must be even; got ${rotaryDim}`, { rotaryDim });
    positive("RotaryEmbedding", "base", base);
    wholeNumber("RotaryEmbedding", "maxPositions", maxPositions, 1, 2 ** 31);
    if (pairing !== "half" && pairing !== "interleaved") {
      throw new ArgumentError(
        `[RotaryEmbedding] pairing must be "half" or "interleaved"; got ${String(pairing)}`,
        { pairing },
      );
    }
    this.#frequencies = ropeFrequencies(rotaryDim, base, scaling);
    this.#options = { rotaryDim, base, pairing, maxPositions, scaling };
    adopt(this);
  }
  /** The options with their defaults filled in. */
  get options(): RotaryEmbeddingConfig {
    return this.#options;
  }
  /**
   * x [B, S, H, D] (or [T, H, D]) turned at the given positions; position 0 first by default. Throws
   * ArgumentError for a position outside 0 .. maxPositions - 1, ShapeError, DTypeError, DeviceError,
   * DisposedError, OutOfMemoryError.
   */
  apply<D extends FloatDType>(x: Tensor<D>, positions: Positions = 0): Tensor<D> {
    return this.#turn(rope, x, positions);
  }
  /** The gradient of {@link apply}: dOut turned back at the same positions. Same errors. */
  applyBackward<D extends FloatDType>(dOut: Tensor<D>, positions: Positions = 0): Tensor<D> {
    return this.#turn(ropeBackward, dOut, positions);
  }
  #turn<D extends FloatDType>(turn: typeof rope, x: Tensor<D>, where: Positions): Tensor<D> {
    return scope(() => {
      const S = x.shape[x.rank - 3] ?? 0;
      if (typeof where === "number")
        wholeNumber("RotaryEmbedding", "positions", where, 0, this.#options.maxPositions);
      const positions = typeof where === "number" ? arange(where, where + S, 1, { engine: x.engine }) : where;
      const rows = typeof where === "number" ? where + S : this.#rowsFor(where);
      const { cos, sin } = this.#tablesOf(x.engine, accumulatorOf(x.dtype), rows);
      return turn(x, cos, sin, { positions, pairing: this.#options.pairing });
    });
  }
  /**
   * One more than the largest position; off the host, where positions cannot be read in time, all that are
   * allowed.
   */
  #rowsFor(positions: Tensor<"int32">): number {
    positions.check();
    if (positions.dtype !== "int32") {
      throw new ArgumentError(`[RotaryEmbedding] positions must be int32[B, S]; got ${show(positions)}`, {
        dtype: positions.dtype,
      });
    }
    if (positions.engine.device !== "cpu") return this.#options.maxPositions;
    return positions.contiguous().data.reduce((rows, p) => Math.max(rows, p + 1), 0);
  }
  #tablesOf(engine: Engine, dtype: Tables["dtype"], rows: number): Tables {
    const { maxPositions } = this.#options;
    if (this.#disposed)
      throw new DisposedError("[RotaryEmbedding] was disposed; keep it alive as long as its layers");
    if (rows > maxPositions) {
      throw new ArgumentError(
        `[RotaryEmbedding] position ${rows - 1} is not below maxPositions ${maxPositions}; raise that option`,
        {
          position: rows - 1,
          maxPositions,
        },
      );
    }
    const at = this.#tables.findIndex((t) => t.engine === engine && t.dtype === dtype);
    const old = this.#tables[at];
    if (old !== undefined && rows <= old.cos.shape[0]!) return old;
    let length = old?.cos.shape[0] ?? Math.min(FIRST_ROWS, maxPositions);
    while (length < rows) length = Math.min(2 * length, maxPositions);
    const grown = unscoped(() => scope(() => this.#build(engine, dtype, length, old)));
    if (old === undefined) this.#tables.push(grown);
    else this.#tables[at] = grown;
    old?.cos[Symbol.dispose]();
    old?.sin[Symbol.dispose]();
    return grown;
  }
  /** Tables of `length` rows; the rows of `old` are copied, not computed again. */
  #build(engine: Engine, dtype: Tables["dtype"], length: number, old: Tables | undefined): Tables {
    const half = this.#frequencies.length;
    const make = (f: (angle: number) => number, before: Tensor | undefined): Tensor => {
      const table = allocate(engine, dtype, [length, half]);
      let row = before?.shape[0] ?? 0;
      if (before !== undefined) copyInto(before, table.slice(0, 0, row));
      while (row < length) {
        const n = Math.min(CHUNK_ROWS, length - row);
        const values = new DTYPES[dtype].array(n * half);
        for (let i = 0; i < values.length; i++)
          values[i] = f((row + Math.floor(i / half)) * this.#frequencies[i % half]!);
        copyInto(tensor(values, [n, half], { dtype, engine }), table.slice(0, row, row + n));
        row += n;
      }
      return table;
    };
    return { engine, dtype, cos: make(Math.cos, old?.cos), sin: make(Math.sin, old?.sin) };
  }
  /** Frees the tables. Calling it again does nothing. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const { cos, sin } of this.#tables.splice(0)) {
      cos[Symbol.dispose]();
      sin[Symbol.dispose]();
    }
  }
}
