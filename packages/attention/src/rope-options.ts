import { ArgumentError } from "@heed/tensor";
import { positive, wholeNumber } from "./check.ts";
import { resolveScaling, type RopeScaling } from "./rope-scaling.ts";

/**
 * How the pairs are shared out among three positions of a token: its frame, row and column (mRoPE; Wang et al.
 * 2024, Qwen2-VL, arXiv:2409.12191).
 */
export interface RopeSections {
  /** Pairs for each position; together rotaryDim / 2. */
  readonly pairs: readonly [number, number, number];
  /**
   * "blocks" (default): the first pairs turn by the frame, then those of the row, then those of the column
   * (Qwen2-VL, Qwen2.5-VL). "interleaved": pair j takes row where j mod 3 = 1, column where j mod 3 = 2, as
   * far as their numbers go, and frame elsewhere (Qwen3-VL, arXiv:2511.21631).
   */
  readonly order?: "blocks" | "interleaved" | undefined;
}
/** Options of `RotaryEmbedding`. */
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
  /**
   * Angles are divided by it, whatever the scaling; what `scaleRope` sets. Default 1.
   */
  readonly positionFactor?: number | undefined;
  /** Three positions a token. Default null: one. */
  readonly sections?: RopeSections | null | undefined;
}
/** Options with their defaults filled in, as plain JSON. */
export type RotaryEmbeddingConfig = {
  readonly [K in keyof RotaryEmbeddingOptions]-?: Exclude<RotaryEmbeddingOptions[K], undefined>;
};
const WHAT = "RotaryEmbedding";

function oneOf<T extends string>(name: string, value: T, known: readonly T[]): T {
  if (known.includes(value)) return value;
  const list = known.map((k) => `"${k}"`).join(" or ");
  throw new ArgumentError(`[${WHAT}] ${name} must be ${list}; got ${String(value)}`, { [name]: value });
}
function resolveSections(sections: RopeSections, rotaryDim: number): RopeSections {
  const { pairs, order = "blocks" } = sections;
  oneOf("sections.order", order, ["blocks", "interleaved"]);
  if (!Array.isArray(pairs) || pairs.length !== 3)
    throw new ArgumentError(`[${WHAT}] sections.pairs must be three numbers; got ${String(pairs)}`, {
      pairs,
    });
  pairs.forEach((n, axis) => wholeNumber(WHAT, `sections.pairs[${axis}]`, n as number, 0));
  const [frame, row, column] = pairs as unknown as RopeSections["pairs"];
  if (frame + row + column !== rotaryDim / 2) {
    throw new ArgumentError(
      `[${WHAT}] sections.pairs must add up to rotaryDim / 2 = ${rotaryDim / 2}; got ${pairs.join(", ")}`,
      { pairs, rotaryDim },
    );
  }
  const resolved = { pairs: [frame, row, column], order } as const;
  const missing = [row, column].some(
    (n, i) => axisOfPairs(resolved).filter((axis) => axis === i + 1).length !== n,
  );
  if (missing) {
    throw new ArgumentError(
      `[${WHAT}] sections.pairs ${pairs.join(", ")} cannot be interleaved: ${rotaryDim / 2} pairs have no room for that many rows or columns at every third`,
      { pairs, rotaryDim },
    );
  }
  return resolved;
}
/** Which of a token's three positions (0 frame, 1 row, 2 column) turns each pair [rotaryDim / 2]. */
export function axisOfPairs({ pairs, order }: RopeSections): number[] {
  const [frame, row, column] = pairs;
  return Array.from({ length: frame + row + column }, (_, j) => {
    if (order === "interleaved") return j % 3 !== 0 && j < 3 * pairs[j % 3]! ? j % 3 : 0;
    return j < frame ? 0 : j < frame + row ? 1 : 2;
  });
}
/** Checks options and fills in defaults. Throws ArgumentError that names the option. */
export function resolveRopeOptions(options: RotaryEmbeddingOptions): RotaryEmbeddingConfig {
  const { base = 10000, pairing = "half", maxPositions = 2 ** 20, scaling = { type: "none" } } = options;
  const rotaryDim = wholeNumber(WHAT, "rotaryDim", options.rotaryDim, 2);
  if (rotaryDim % 2 !== 0)
    throw new ArgumentError(`[${WHAT}] rotaryDim must be even; got ${rotaryDim}`, { rotaryDim });
  return {
    rotaryDim,
    base: positive(WHAT, "base", base),
    pairing: oneOf("pairing", pairing, ["half", "interleaved"]),
    maxPositions: wholeNumber(WHAT, "maxPositions", maxPositions, 1, 2 ** 31),
    scaling: resolveScaling(rotaryDim, base, scaling),
    positionFactor: positive(WHAT, "positionFactor", options.positionFactor ?? 1),
    sections: options.sections ? resolveSections(options.sections, rotaryDim) : null,
  };
}
