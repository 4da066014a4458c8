/** Queries and keys of equal lengths; FLOPs as FlashAttention's papers count them: causal is half. */
export interface PrefillShape {
  readonly kind: "forward" | "backward";
  readonly batch: number;
  readonly heads: number;
  readonly length: number;
  readonly headDim: number;
  readonly causal: boolean;
}
/** One token for each of `batch` sequences of `length` tokens in pages of 64. */
export interface DecodeShape {
  readonly kind: "decode";
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly length: number;
  readonly headDim: number;
  /** Head size of the values; below `headDim` they are a prefix of the keys (latent attention). */
  readonly valueDim: number;
  readonly storage: "bfloat16" | "float8e4m3" | "int8" | "int4";
}
/** Rows of a normalization, an append or a copy. */
export interface RowsShape {
  readonly kind: "rms norm" | "append";
  readonly rows: number;
  readonly width: number;
}
/** A problem, as peers get it too. */
export type Shape = PrefillShape | DecodeShape | RowsShape;

const TOKENS = 16384;
const HIDDEN = 2048;
const LENGTHS = [512, 1024, 2048, 4096, 8192, 16384];

function prefill(
  kind: PrefillShape["kind"],
  headDim: number,
  causal: boolean,
  lengths = LENGTHS,
): PrefillShape[] {
  return lengths.map((length) => ({
    kind,
    batch: TOKENS / length,
    heads: HIDDEN / headDim,
    length,
    headDim,
    causal,
  }));
}
function decode(batch: number, length: number, over: Partial<DecodeShape> = {}): DecodeShape {
  const grouped = { heads: 32, kvHeads: 8, headDim: 128, valueDim: 128, storage: "bfloat16" } as const;
  return { kind: "decode", batch, length, ...grouped, ...over };
}
const latent = { heads: 128, kvHeads: 1, headDim: 576, valueDim: 512 } as const;

/** What is timed on a device. */
export const SHAPES: readonly Shape[] = [
  ...[64, 128, 256].flatMap((d) => [false, true].flatMap((causal) => prefill("forward", d, causal))),
  ...[64, 128].flatMap((d) =>
    [false, true].flatMap((causal) => prefill("backward", d, causal, [2048, 8192])),
  ),
  ...[1, 16, 128].flatMap((batch) => [4096, 32768].map((length) => decode(batch, length))),
  ...(["float8e4m3", "int8", "int4"] as const).flatMap((storage) =>
    [1, 16].map((batch) => decode(batch, 32768, { storage })),
  ),
  ...[1, 16].map((batch) => decode(batch, 4096, latent)),
  { kind: "rms norm", rows: TOKENS, width: 4096 },
  { kind: "append", rows: TOKENS, width: 1024 },
];
/** The few that are timed with --quick. */
export const QUICK_SHAPES: readonly Shape[] = [
  ...prefill("forward", 128, true, [4096]),
  decode(16, 4096),
  { kind: "rms norm", rows: TOKENS, width: 4096 },
];
/** The same kinds in sizes that an emulated device runs in a moment. */
export const TINY_SHAPES: readonly Shape[] = [
  { kind: "forward", batch: 1, heads: 2, length: 70, headDim: 64, causal: true },
  { kind: "backward", batch: 1, heads: 2, length: 40, headDim: 64, causal: true },
  decode(2, 128, { heads: 4, kvHeads: 2 }),
  decode(1, 128, { heads: 4, kvHeads: 2, storage: "float8e4m3" }),
  decode(1, 128, { heads: 4, kvHeads: 2, storage: "int8" }),
  decode(1, 128, { heads: 4, kvHeads: 2, storage: "int4" }),
  decode(1, 64, { ...latent, heads: 16 }),
  { kind: "rms norm", rows: 8, width: 256 },
  { kind: "append", rows: 64, width: 128 },
];

/** What the shape is called in tables; peers' results carry it too. */
export function nameOf(shape: Shape): string {
  switch (shape.kind) {
    case "forward":
    case "backward": {
      const { kind, headDim, length, causal, batch, heads } = shape;
      return `${kind} d${headDim} ${length} ${causal ? "causal" : "full"}, ${batch} x ${heads} heads`;
    }
    case "decode": {
      const { batch, length, heads, kvHeads, headDim, valueDim, storage } = shape;
      const size = headDim === valueDim ? `d${headDim}` : `d${headDim}/${valueDim}`;
      return `decode ${batch} x ${length}, ${heads}/${kvHeads} ${size} ${storage}`;
    }
    default:
      return `${shape.kind} ${shape.rows} x ${shape.width}`;
  }
}
/** Operations of the products; a backward pass has five of them where a forward pass has two. */
export function flopsOf({ kind, batch, heads, length, headDim, causal }: PrefillShape): number {
  return 4 * batch * heads * length * length * headDim * (causal ? 0.5 : 1) * (kind === "backward" ? 2.5 : 1);
}
/** Bytes of a key or a value: in 4 bits 32 numbers, of tokens or of channels, share a scale and a zero in float32. */
function rowBytes(storage: DecodeShape["storage"], d: number): number {
  switch (storage) {
    case "bfloat16":
      return 2 * d;
    case "int4":
      return d / 2 + (8 * d) / 32;
    default:
      return d + 4;
  }
}
/** Bytes of keys and values that one step reads, scales included; values that are a prefix of the keys are not read again. */
export function cacheBytesOf({ batch, length, kvHeads, headDim, valueDim, storage }: DecodeShape): number {
  const isLatent = valueDim < headDim;
  const value = isLatent ? 0 : rowBytes(storage, valueDim);
  return batch * length * kvHeads * (rowBytes(storage, headDim) + value);
}
