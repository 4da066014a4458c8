import {
  accumulatorOf,
  add,
  adopt,
  arange,
  ArgumentError,
  DisposedError,
  type FloatDType,
  gather,
  hostIntegers,
  maskZero,
  recheck,
  rope,
  ropeBackward,
  type RopeOfHeads,
  scope,
  ShapeError,
  show,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { positive, wholeNumber } from "./check.ts";
import {
  axisOfPairs,
  resolveRopeOptions,
  type RotaryEmbeddingConfig,
  type RotaryEmbeddingOptions,
} from "./rope-options.ts";
import { decisiveLength, ropeAttentionFactor, ropeFrequencies, variesByCall } from "./rope-scaling.ts";
import { type RopeAngles, type RopeTable, type RopeTableKey, RopeTables, tokenTable } from "./rope-tables.ts";

export type { RotaryEmbeddingConfig, RotaryEmbeddingOptions } from "./rope-options.ts";

/**
 * Where tokens stand: int32 [B, S], or [S] for all sequences alike, or the number of the first token's
 * position. With `sections` also int32 [3, B, S]: frames, rows and columns.
 */
export type Positions = number | Tensor<"int32">;

/** The rows of a table that tokens turn by. */
interface Located extends RopeTable {
  readonly positions: Tensor<"int32">; // [B, S] or [S]
}
/**
 * Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of components turn by position *
 * frequency. Angles are computed in float64 and their cosines and sines rounded once to float32 (float64 for
 * float64 tensors). The tables are kept per engine and dtype and grow by doubling. May be shared by layers.
 */
export class RotaryEmbedding {
  #options: RotaryEmbeddingConfig;
  readonly #axes: readonly number[];
  readonly #tables: RopeTables;
  #disposed = false;

  /** Throws ArgumentError. */
  constructor(options: RotaryEmbeddingOptions) {
    this.#options = resolveRopeOptions(options);
    const { rotaryDim, maxPositions, sections } = this.#options;
    this.#axes = sections === null ? new Array<number>(rotaryDim / 2).fill(0) : axisOfPairs(sections);
    this.#tables = new RopeTables((length) => this.#angles(length), maxPositions);
    adopt(this);
  }
  /** The options with their defaults filled in. */
  get options(): RotaryEmbeddingConfig {
    return this.#options;
  }
  /**
   * From now on positions are divided by `factor` (position interpolation, Chen et al. 2023,
   * arXiv:2306.15595), on top of the scaling that there is: it sets the option `positionFactor`, so the same
   * factor again changes nothing, and 1 undoes it. Amplitudes stay. Keys in a cache and recorded tapes keep
   * the angles they were made with, and a pass would go back by others than it came: call it between passes
   * and sequences, not within. Throws ArgumentError.
   */
  scaleRope(factor: number): void {
    positive("RotaryEmbedding", "factor", factor);
    if (factor === this.#options.positionFactor) return;
    this.#options = { ...this.#options, positionFactor: factor };
    this.#tables.clear();
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
  /**
   * What {@link apply} turns x by, for an operation that rotates among other things. Tensors belong to the caller's scope or to this
   * embedding: use them before it is called again. Same errors.
   */
  rotation(x: Tensor, positions: Positions = 0): RopeOfHeads {
    return { ...this.#locate(x, positions), pairing: this.#options.pairing };
  }
  #turn<D extends FloatDType>(turn: typeof rope, x: Tensor<D>, where: Positions): Tensor<D> {
    return scope(() => {
      const { cos, sin, positions } = this.#locate(x, where);
      return turn(x, cos, sin, { positions, pairing: this.#options.pairing });
    });
  }
  #locate(x: Tensor, where: Positions): Located {
    if (this.#disposed)
      throw new DisposedError("[RotaryEmbedding] was disposed; keep it alive as long as its layers");
    const { scaling, maxPositions } = this.#options;
    const S = x.shape[x.rank - 3] ?? 0;
    if (typeof where === "number") wholeNumber("RotaryEmbedding", "positions", where, 0, maxPositions);
    else this.#check(x, where);
    const used = typeof where === "number" ? where + S : this.#lengthOf(where);
    if (used !== undefined && used > maxPositions) {
      throw new ArgumentError(
        `[RotaryEmbedding] position ${used - 1} is not below maxPositions ${maxPositions}; raise that option`,
        { position: used - 1, maxPositions },
      );
    }
    const positions = typeof where === "number" ? arange(where, where + S, 1, { engine: x.engine }) : where;
    const length = decisiveLength(scaling, used);
    if (typeof where !== "number" && where.engine.device === "cpu")
      recheck([where], ([given]) => this.#sameLength(given as Tensor<"int32">, length));
    const key = { engine: x.engine, dtype: accumulatorOf(x.dtype as FloatDType), length };
    if (variesByCall(scaling, length)) return this.#ownTable(key, positions, where);
    const table = this.#tables.get(key, used ?? maxPositions);
    return positions.rank === 3 ? this.#bySections(key, table, positions) : { ...table, positions };
  }
  #check(x: Tensor, positions: Tensor<"int32">): void {
    positions.check();
    const [B, S] = [x.rank === 3 ? 1 : (x.shape[0] ?? 0), x.shape[x.rank - 3] ?? 0];
    if (positions.dtype !== "int32") {
      throw new ArgumentError(`[RotaryEmbedding] positions must be int32[B, S]; got ${show(positions)}`, {
        dtype: positions.dtype,
      });
    }
    if (positions.rank < 3) return; // the rotation itself checks these
    if (this.#options.sections === null || positions.shape.join() !== [3, B, S].join()) {
      const needed = this.#options.sections === null ? "without sections" : `or [3, ${B}, ${S}]`;
      throw new ShapeError(
        `[RotaryEmbedding] positions must be int32[${B}, ${S}] ${needed}; got ${show(positions)}`,
        { positions: positions.shape },
      );
    }
  }
  /** One more than the largest position; undefined off the host, where positions cannot be read in time. */
  #lengthOf(positions: Tensor<"int32">): number | undefined {
    if (positions.engine.device !== "cpu") return undefined;
    let [low, high] = [0, -1];
    const values = hostIntegers(positions) as ArrayLike<number>;
    for (let i = 0; i < values.length; i++) {
      low = Math.min(low, values[i]!);
      high = Math.max(high, values[i]!);
    }
    if (low < 0) throw new ArgumentError(`[RotaryEmbedding] position ${low} is below 0`, { position: low });
    return high + 1;
  }
  /** For replays of a tape, which has the table for one decisive length. Throws ArgumentError. */
  #sameLength(positions: Tensor<"int32">, recorded: number): void {
    const length = decisiveLength(this.#options.scaling, this.#lengthOf(positions));
    if (length === recorded) return;
    throw new ArgumentError(
      `[RotaryEmbedding] the tape was recorded with the frequencies for length ${recorded}, and these positions need those for ${length}; record again`,
      { recorded, length },
    );
  }
  #angles(length: number): RopeAngles {
    const { rotaryDim, base, scaling, positionFactor } = this.#options;
    const frequencies = ropeFrequencies(rotaryDim, base, scaling, length);
    return {
      frequencies: frequencies.map((f) => f / positionFactor),
      amplitude: ropeAttentionFactor(scaling),
    };
  }
  /** A row for each token of a call whose frequencies no other call shares. */
  #ownTable(key: RopeTableKey, positions: Tensor<"int32">, where: Positions): Located {
    const shape = positions.rank === 3 ? positions.shape.slice(1) : positions.shape;
    const tokens = shape.reduce((n, d) => n * d, 1);
    const axes = positions.rank === 3 ? this.#axes : [];
    const flat = typeof where === "number" ? undefined : positions.contiguous().data;
    const at = (token: number, pair: number): number =>
      flat === undefined ? (where as number) + token : flat[(axes[pair] ?? 0) * tokens + token]!;
    const table = tokenTable(key, this.#angles(key.length), tokens, at);
    return { ...table, positions: arange(0, tokens, 1, { engine: key.engine }).reshape(shape) };
  }
  /** A row for each token, whose pairs come from the rows of its three positions [3, B, S]. */
  #bySections({ engine }: RopeTableKey, table: RopeTable, positions: Tensor<"int32">): Located {
    const shape = positions.shape.slice(1);
    const tokens = shape.reduce((n, d) => n * d, 1);
    const masks = [0, 1, 2].map((axis) =>
      tensor(
        Uint8Array.from(this.#axes, (a) => Number(a === axis)),
        [this.#axes.length],
        { dtype: "bool", engine },
      ),
    );
    const pick = (from: Tensor): Tensor =>
      masks
        .map((mask, axis) => maskZero(gather(from, positions.select(0, axis)) as Tensor<"float32">, mask))
        .reduce((sum, part) => add(sum, part))
        .reshape([tokens, this.#axes.length]);
    return {
      cos: pick(table.cos),
      sin: pick(table.sin),
      positions: arange(0, tokens, 1, { engine }).reshape(shape),
    };
  }
  /** Frees the tables. Calling it again does nothing. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#tables.clear();
  }
}
