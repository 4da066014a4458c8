import type { DType, ScoreRules } from "@heed/tensor";
import type { DeviceLimits, Launch } from "../../launch.ts";

/** A kernel of native/kernels/attention/forward.cu: the largest sizes it takes, and its tile of query rows and keys. */
interface Kernel {
  readonly D: number;
  readonly Dv: number;
  readonly rows: number;
  readonly keys: number;
  readonly threads: number;
}
/** As instantiated in native/kernels/attention/forward.cu, with the most keys that it takes on any device; the smallest that takes a problem runs it. */
const PLAIN: readonly Kernel[] = [
  { D: 64, Dv: 64, rows: 128, keys: 64, threads: 128 },
  { D: 96, Dv: 96, rows: 128, keys: 48, threads: 128 },
  { D: 128, Dv: 128, rows: 128, keys: 64, threads: 128 },
  { D: 192, Dv: 128, rows: 128, keys: 64, threads: 256 },
  { D: 256, Dv: 256, rows: 64, keys: 64, threads: 128 },
  { D: 512, Dv: 256, rows: 64, keys: 16, threads: 128 },
];
/** Sizes that problems with rules leave to the next larger kernel, for the library's size. */
export const WITHOUT_RULES: readonly number[] = [96, 192];
/** The same with softcap, ALiBi, mask, dropout and sink tokens, which need registers of their own. */
const RICH: readonly Kernel[] = PLAIN.filter(({ D }) => !WITHOUT_RULES.includes(D)).map((kernel) => ({
  ...kernel,
  rows: 64,
  keys: kernel.D === 512 ? 16 : 64,
  threads: 128,
}));
/** Compute capability of the kernels on wgmma: no other has these instructions. */
const HOPPER = 90;
/** Kernels of native/kernels/attention/forward_warpgroup.cuh, which stand for the ones without rules up to their sizes. */
const WARPGROUP: readonly Kernel[] = [
  { D: 64, Dv: 64, rows: 192, keys: 128, threads: 512 },
  { D: 128, Dv: 128, rows: 128, keys: 128, threads: 384 },
  { D: 192, Dv: 128, rows: 128, keys: 128, threads: 384 },
  { D: 256, Dv: 256, rows: 128, keys: 64, threads: 384 },
];
/** Columns of a slice of values where the kernel takes them in slices: head size 512. */
const SLICE = 256;
const LARGEST = 512;

/** Sizes of a problem, as far as they decide on a kernel. */
export interface Sizes {
  readonly D: number;
  readonly Dv: number;
  readonly Hkv: number;
  /** Tiles of so many rows that cover the queries. */
  readonly tiles: (rows: number) => number;
}
/** A launch, and the keys of a tile where the kernel leaves them open. */
export interface Schedule {
  readonly launch: Launch;
  /** Query rows of a tile. */
  readonly rows: number;
  readonly keys: number;
}
/** Whether scores are more than scaled and cut by a window on both sides. */
export function isRich({ softcap, mask, alibiSlopes, dropout, sinkTokens }: ScoreRules): boolean {
  const added = mask !== undefined || alibiSlopes !== undefined || dropout !== undefined;
  return added || softcap > 0 || sinkTokens > 0;
}
/** Bytes of a block: queries, keys and values; rows in shared memory are 16 bytes longer than their numbers, see fragments.cuh. */
function tileBytes({ D, Dv, rows, keys }: Kernel): number {
  return (rows + keys) * (2 * D + 16) + keys * (2 * Dv + 16);
}
/** The same of a kernel on wgmma: two tiles of keys and of values, without gaps; marks of warps and barriers. */
function warpgroupBytes({ D, Dv, rows, keys }: Kernel): number {
  return rows * 2 * D + 2 * keys * (2 * D + 2 * Dv) + 64 + 64;
}
/** The kernel on tensor cores, or undefined where there is none for the sizes; for float16 and bfloat16. */
export function tensorCores(
  dtype: DType,
  sizes: Sizes,
  rich: boolean,
  { computeCapability, sharedPerBlock }: DeviceLimits,
): Schedule | undefined {
  const name = dtype === "bfloat16" ? "bf16" : dtype === "float16" ? "f16" : undefined;
  const { D, Dv, Hkv } = sizes;
  const fits = (k: Kernel): boolean => D <= k.D && (Dv <= k.Dv || (k.D === LARGEST && Dv <= LARGEST));
  const onWarpgroups = computeCapability === HOPPER && !rich ? WARPGROUP.find(fits) : undefined;
  // The library has no other kernel of these sizes for such a device.
  if (onWarpgroups !== undefined && warpgroupBytes(onWarpgroups) > sharedPerBlock) return undefined;
  const kernel = onWarpgroups ?? (rich ? RICH : PLAIN).find(fits);
  if (name === undefined || kernel === undefined) return undefined;
  const slices = kernel.D === LARGEST ? Math.ceil(Dv / SLICE) : 1;
  const suffix = onWarpgroups ? "_warpgroup" : rich ? "_rich" : "";
  return {
    launch: {
      kernel: `heed_cuda_attention_${name}_${kernel.D}${suffix}`,
      grid: [sizes.tiles(kernel.rows), Hkv, slices],
      threads: kernel.threads,
      shared: onWarpgroups ? warpgroupBytes(kernel) : tileBytes(kernel),
    },
    rows: kernel.rows,
    keys: 0,
  };
}
const ANY_ROWS = 16;
const ANY_THREADS = 128;
/** Most keys of a tile: more do not help, the tile is read once for all its rows. */
const ANY_KEYS = 32;

/** The kernel without tensor cores, or undefined where a tile does not fit the shared memory; float64 is computed as such. */
export function anyKernel(dtype: DType, sizes: Sizes, limits: DeviceLimits): Schedule | undefined {
  const bytes = dtype === "float64" ? 8 : 4;
  const { D, Dv, Hkv } = sizes;
  const fixed = ANY_ROWS * (D + 1 + Dv);
  const perKey = Math.max(D, Dv) + 1 + ANY_ROWS;
  const keys = Math.min(ANY_KEYS, Math.floor((limits.sharedPerBlock / bytes - fixed) / perKey));
  if (keys < 1) return undefined;
  return {
    launch: {
      kernel: `heed_cuda_attention_any_${dtype === "float64" ? "f64" : "f32"}`,
      grid: [sizes.tiles(ANY_ROWS), Hkv, 1],
      threads: ANY_THREADS,
      shared: (fixed + keys * perKey) * bytes,
    },
    rows: ANY_ROWS,
    keys,
  };
}

/** Rows of a tile, keys that a warp takes at once and the warps of native/kernels/attention/decode.cuh. */
export const DECODE = { rows: 16, keys: 16, warps: 4, mostParts: 48 } as const;
/** Head sizes it is instantiated for. */
const DECODE_SIZES = [64, 128, 256];
/** Keys of 4-bit pages that a warp takes at once: those that share scales and zeros. */
const INT4_KEYS = 32;
/** Bytes of the keys and values that a warp has under way at once; rows in shared memory are 16 bytes longer than their numbers. */
function stageBytes(storage: DecodeProblem["storage"], size: number): number {
  // Scale and zero in float32: for 32 keys of each channel, for a value of each 32 channels.
  if (storage === "int4") return 2 * INT4_KEYS * (size / 2 + 16) + 2 * 8 * size;
  return 2 * DECODE.keys * (size * (storage === "float" ? 2 : 1) + 16);
}
/** Fewest keys of a part: what its result costs, two numbers and a row in float32, is then 2 % of what it reads. */
const SMALLEST_PART = 256;

/** A decode launch, and the memory in which the parts of sequences meet. */
export interface DecodeSchedule {
  readonly launch: Launch;
  /** Fewest keys of a part. */
  readonly part: number;
  /** int32, to be zero. */
  readonly counters: number;
  /** float32. */
  readonly partial: number;
  /** The launch after it in which parts are added up, where the kernel itself does not. */
  readonly merge?: Launch;
}
/** What a decode schedule depends on besides {@link Sizes}. */
export interface DecodeProblem extends Sizes {
  readonly dtype: DType;
  /** How pages store a number: in the queries' dtype, in 8 bits with a scale to a row, in 4 bits with residual pages. */
  readonly storage: "float" | "codes" | "int4";
  readonly G: number;
  /** Sequences and query rows. */
  readonly N: number;
  readonly T: number;
  /** Tokens that the pages in use can hold. */
  readonly capacity: number;
}
/**
 * The kernel for few query rows to a sequence, or undefined where another serves better: rows of a sequence that fill more than a tile
 * would read its keys again and again.
 */
export function decodeKernel(p: DecodeProblem, limits: DeviceLimits): DecodeSchedule | undefined {
  const { rows, warps } = DECODE;
  const size = DECODE_SIZES.find((n) => p.D <= n && p.Dv <= n);
  const name = p.dtype === "bfloat16" ? "bf16" : p.dtype === "float16" ? "f16" : undefined;
  if (size === undefined || name === undefined || p.T * p.G > rows * p.N) return undefined;
  const stages = p.storage === "codes" && size <= 128 ? 4 : 2;
  const shared = rows * (2 * size + 16) + warps * stages * stageBytes(p.storage, size);
  if (shared > limits.sharedPerBlock) return undefined;
  return meeting(p, rows, SMALLEST_PART, {
    kernel: `heed_cuda_decode_${name}_${size}${p.storage === "float" ? "" : `_${p.storage}`}`,
    threads: 32 * warps,
    shared,
  });
}

/** Of native/kernels/attention/latent.cuh: tiles of the most keys that fit. */
const LATENT = { D: 576, Dv: 512, rows: 64, keys: [64, 32], stages: 2, threads: 256, merged: 4 } as const;
/** Fewest keys of a part: what its result costs, 64 rows of 512 in float32, is then a quarter of what it reads and stays in the level 2 cache. */
const SMALLEST_LATENT_PART = 512;
/** Bytes of shared memory for latent rows: queries and stages of keys in rows of 16 bytes more than their numbers, weights. */
function latentBytes(keys: number): number {
  const { rows, stages, D } = LATENT;
  return (rows + stages * keys) * (2 * D + 16) + 2 * rows * keys;
}

/** The kernel for pages whose values are a prefix of their keys, or undefined where the shared memory is too small for it. */
export function latentKernel(p: DecodeProblem, limits: DeviceLimits): DecodeSchedule | undefined {
  const { rows, threads, merged } = LATENT;
  const name = p.dtype === "bfloat16" ? "bf16" : p.dtype === "float16" ? "f16" : undefined;
  const keys = LATENT.keys.find((n) => latentBytes(n) <= limits.sharedPerBlock);
  if (name === undefined || p.storage !== "float" || p.D > LATENT.D || p.Dv > LATENT.Dv || keys === undefined)
    return undefined;
  // What the sequences' parts and tiles can be at most, however tokens and pages are shared out among them.
  const parts = Math.floor(p.capacity / SMALLEST_LATENT_PART) + p.N;
  const isCut = p.capacity > SMALLEST_LATENT_PART;
  const tiles = p.G % rows === 0 ? (p.T * p.G) / rows : p.tiles(rows);
  const blocks = tiles + (isCut ? (parts - p.N) * Math.ceil(p.G / rows) : 0);
  const launch = { kernel: `heed_cuda_latent_${name}_${keys}`, threads, shared: latentBytes(keys) };
  const merge = { kernel: `heed_cuda_latent_merge_${name}`, threads: 32 * merged, shared: 0 };
  return {
    launch: { ...launch, grid: [blocks, p.Hkv, 1] },
    ...(isCut && { merge: { ...merge, grid: [p.N, p.Hkv, Math.ceil(p.G / merged)] } }),
    part: SMALLEST_LATENT_PART,
    counters: 0,
    partial: isCut ? (parts + 1) * p.Hkv * p.G * (p.Dv + 4) : 0,
  };
}
/** A launch whose blocks take parts of sequences, and the memory in which these meet. */
function meeting(p: DecodeProblem, rows: number, part: number, launch: Omit<Launch, "grid">): DecodeSchedule {
  const parts = Math.min(DECODE.mostParts, Math.max(1, Math.ceil(p.capacity / part)));
  const slots = Math.floor(p.capacity / part) + p.N + 1;
  const tiles = Math.ceil(p.G / rows);
  return {
    launch: { ...launch, grid: [p.tiles(rows), p.Hkv, parts] },
    part,
    counters: parts > 1 ? p.N * p.Hkv * tiles : 0,
    partial: parts > 1 ? slots * p.Hkv * p.G * (p.Dv + 4) : 0,
  };
}
