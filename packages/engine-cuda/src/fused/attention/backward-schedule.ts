import { WITHOUT_RULES } from "./schedule.ts";
import type { DType } from "@heed/tensor";
import type { DeviceLimits, Launch } from "../../launch.ts";

/** The tile that a block owns, keys or query rows, and how many of the other side come at a time. */
interface Tile {
  readonly own: number;
  readonly other: number;
  /** Tiles of the other side in shared memory. */
  readonly stages: number;
  /** Bytes of weights in shared memory. */
  readonly weights: number;
}
/** A pair of kernels of native/kernels/attention/backward.cu: the largest sizes they take, and their tiles. */
interface Kernels {
  readonly D: number;
  readonly Dv: number;
  /** Of a block that has dk and dv. */
  readonly keys: Tile;
  /** The same, of the kernel `_pairs`: where two blocks of it fit a multiprocessor. */
  readonly pairedKeys?: Tile;
  /** Of one that has dq. */
  readonly rows: Tile;
  /** The same, of the kernel `_tall`: where two blocks of it fit a multiprocessor. */
  readonly tallRows?: Tile;
  /** Blocks that share the columns of dk and dv. */
  readonly slices: number;
}
const tile = (own: number, other: number): Tile => ({ own, other, stages: 2, weights: 0 });
const SQUARE = tile(64, 32);
const TALL = tile(128, 32);
const FLAT = tile(64, 16);
/** Of backward_pairs.cuh: float32 weights of two tiles. */
const PAIRS: Tile = { own: 64, other: 32, stages: 3, weights: 2 * 64 * 32 * 4 };
/** As instantiated there; the smallest that takes a problem runs it. */
const PLAIN: readonly Kernels[] = [
  { D: 64, Dv: 64, keys: PAIRS, rows: TALL, slices: 1 },
  { D: 96, Dv: 96, keys: PAIRS, rows: TALL, slices: 1 },
  { D: 128, Dv: 128, keys: SQUARE, pairedKeys: PAIRS, rows: SQUARE, tallRows: TALL, slices: 1 },
  { D: 192, Dv: 128, keys: SQUARE, rows: SQUARE, slices: 1 },
  { D: 256, Dv: 256, keys: FLAT, rows: FLAT, slices: 2 },
];
/** The same with softcap, ALiBi, mask, dropout and sink tokens, which need registers of their own. */
const RICH: readonly Kernels[] = PLAIN.filter(({ D }) => !WITHOUT_RULES.includes(D)).map(
  ({ D, Dv, slices }) => {
    const square = D === 256 ? FLAT : SQUARE;
    return { D, Dv, keys: square, rows: square, slices };
  },
);
const THREADS = 128;

/** Lengths that decide on kernels and grids. */
export interface BackwardSizes {
  readonly B: number;
  readonly S: number;
  readonly Sk: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
}
/** A launch, and how many tiles a sequence has in it. */
export interface TiledLaunch {
  readonly launch: Launch;
  readonly tiles: number;
}
/** The launches that give dk and dv, and dq. */
export interface BackwardSchedule {
  readonly keys: TiledLaunch;
  readonly rows: TiledLaunch;
}
function tiled(
  kernel: string,
  { B, Hkv }: BackwardSizes,
  tiles: number,
  slices: number,
  shared: number,
): TiledLaunch {
  return { launch: { kernel, grid: [B * tiles, Hkv, slices], threads: THREADS, shared }, tiles };
}
const rowsOf = ({ S, Hq, Hkv }: BackwardSizes): number => S * (Hq / Hkv);

/** Bytes of a block: rows in shared memory are 16 bytes longer than their numbers, see fragments.cuh. */
function coresShared({ D, Dv }: Kernels, { own, other, stages, weights }: Tile): number {
  return (own + stages * other) * (2 * D + 16 + 2 * Dv + 16) + weights;
}
/** Whether a multiprocessor has room for two blocks: each takes 1 KB more, and it has 1 KB more than one block may have. */
function fitTwo(shared: number, { sharedPerBlock }: DeviceLimits): boolean {
  return 2 * (shared + 1024) <= sharedPerBlock + 1024;
}
/** The kernels on tensor cores, or undefined where there are none for the sizes; for float16 and bfloat16. */
export function tensorCores(
  dtype: DType,
  sizes: BackwardSizes,
  rich: boolean,
  limits: DeviceLimits,
): BackwardSchedule | undefined {
  const name = dtype === "bfloat16" ? "bf16" : dtype === "float16" ? "f16" : undefined;
  const kernels = (rich ? RICH : PLAIN).find(({ D, Dv }) => sizes.D <= D && sizes.Dv <= Dv);
  if (name === undefined || kernels === undefined) return undefined;
  const { D, slices } = kernels;
  /** The tile and suffix of the kernel whose two blocks fit a multiprocessor, where there is one and they do. */
  const choose = (plain: Tile, large: Tile | undefined, suffix: string): readonly [Tile, string] =>
    large !== undefined && fitTwo(coresShared(kernels, large), limits)
      ? [large, suffix]
      : [plain, rich ? "_rich" : ""];
  const of = (
    side: string,
    [shape, suffix]: readonly [Tile, string],
    count: number,
    z: number,
  ): TiledLaunch => {
    const kernel = `heed_cuda_attention_backward_${side}_${name}_${D}${suffix}`;
    return tiled(kernel, sizes, Math.ceil(count / shape.own), z, coresShared(kernels, shape));
  };
  return {
    keys: of("keys", choose(kernels.keys, kernels.pairedKeys, "_pairs"), sizes.Sk, slices),
    rows: of("rows", choose(kernels.rows, kernels.tallRows, "_tall"), rowsOf(sizes), 1),
  };
}

/** Rows and keys of a tile at most. */
const LARGEST_EDGE = 16;
/** What is done without tensor cores. */
export interface AnySchedule extends BackwardSchedule {
  /** Rows and keys of a tile. */
  readonly edge: number;
  /** Bytes of shared memory of a block that has a tile of the mask. */
  readonly maskShared: number;
}
/** Shared memory of backward_any.cuh: q, k, dOut and v, weights and gradients, sums. */
function anyShared({ D, Dv }: BackwardSizes, edge: number, bytes: number): number {
  return edge * (2 * (D + Dv + 2) + 2 * edge + D + Dv) * bytes;
}
/** The kernels without tensor cores, or undefined where a tile does not fit the shared memory; float64 is computed as such. */
export function anyKernels(
  dtype: DType,
  sizes: BackwardSizes,
  limits: DeviceLimits,
): AnySchedule | undefined {
  const [name, bytes] = dtype === "float64" ? (["f64", 8] as const) : (["f32", 4] as const);
  const fits = (edge: number): boolean =>
    anyShared(sizes, edge, bytes) <= limits.sharedPerBlock &&
    maskShared(sizes, edge, bytes) <= limits.sharedPerBlock;
  let edge = LARGEST_EDGE;
  while (edge > 0 && !fits(edge)) edge >>= 1;
  if (edge === 0) return undefined;
  const shared = anyShared(sizes, edge, bytes);
  const of = (side: string): string => `heed_cuda_attention_backward_${side}_any_${name}`;
  return {
    keys: tiled(of("keys"), sizes, Math.ceil(sizes.Sk / edge), 1, shared),
    rows: tiled(of("rows"), sizes, Math.ceil(rowsOf(sizes) / edge), 1, shared),
    edge,
    maskShared: maskShared(sizes, edge, bytes),
  };
}
/** The same without sums of rows, and with float64 sums of the mask's places. */
function maskShared({ D, Dv }: BackwardSizes, edge: number, bytes: number): number {
  return Math.ceil((edge * (2 * (D + Dv + 2) + 2 * edge) * bytes) / 8) * 8 + edge * edge * 8;
}
/** Blocks along the second and third axis of a grid at most; theirs take several tiles of a larger mask. */
const GRID = 65535;

/** The launch that gives the gradient of a mask [B, Hq, S, Sk] with these strides: a block for each tile of places that it has. */
export function maskLaunch(
  dtype: DType,
  { B, S, Sk, Hq }: BackwardSizes,
  strides: readonly number[],
  { edge, maskShared: shared }: AnySchedule,
): Launch {
  const [sequences, heads, tokens, keys] = [B, Hq, S, Sk].map((n, axis) => (strides[axis] === 0 ? 1 : n)) as [
    number,
    number,
    number,
    number,
  ];
  return {
    kernel: `heed_cuda_attention_backward_mask_${dtype === "float64" ? "f64" : "f32"}`,
    grid: [
      Math.ceil(keys / edge),
      Math.min(sequences * heads, GRID),
      Math.min(Math.ceil(tokens / edge), GRID),
    ],
    threads: THREADS,
    shared,
  };
}
const STATISTICS_THREADS = 256;
/** Blocks of the sums over rows at most, each with a warp for every eighth row: eight for each of the 132 multiprocessors of an H100. */
const STATISTICS_BLOCKS = 1056;

/** The launch that gives lse and delta of every row. */
export function statisticsLaunch(dtype: DType, { B, S, Hq }: BackwardSizes): Launch {
  const rows = B * S * Hq;
  const threads = Math.min(STATISTICS_THREADS, 32 * rows);
  return {
    kernel: `heed_cuda_attention_backward_statistics_${dtype === "float64" ? "f64" : "f32"}`,
    grid: [Math.min(STATISTICS_BLOCKS, Math.ceil((32 * rows) / threads)), 1, 1],
    threads,
    shared: 0,
  };
}
/** The launch that gives the gradient of the sinks. */
export function sinksLaunch(dtype: DType, { Hq }: BackwardSizes): Launch {
  return {
    kernel: `heed_cuda_attention_backward_sinks_${dtype === "float64" ? "f64" : "f32"}`,
    grid: [Hq, 1, 1],
    threads: STATISTICS_THREADS,
    shared: 64,
  };
}
