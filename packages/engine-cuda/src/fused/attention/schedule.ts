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
/** As instantiated in native/kernels/attention; the smallest that takes a problem runs it. 128 x 48 is what 255 registers hold at 128. */
const PLAIN: readonly Kernel[] = [
  { D: 64, Dv: 64, rows: 128, keys: 64, threads: 128 },
  { D: 96, Dv: 96, rows: 128, keys: 48, threads: 128 },
  { D: 128, Dv: 128, rows: 128, keys: 48, threads: 128 },
  { D: 192, Dv: 128, rows: 128, keys: 64, threads: 256 },
  { D: 256, Dv: 256, rows: 64, keys: 64, threads: 128 },
  { D: 512, Dv: 256, rows: 64, keys: 16, threads: 128 },
];
/** The same with softcap, ALiBi, mask, dropout and sink tokens, which need registers of their own. */
const RICH: readonly Kernel[] = PLAIN.map((kernel) => ({
  ...kernel,
  rows: 64,
  keys: kernel.D === 512 ? 16 : 64,
  threads: 128,
}));
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
/** The kernel on tensor cores, or undefined where there is none for the sizes; for float16 and bfloat16. */
export function tensorCores(dtype: DType, sizes: Sizes, rich: boolean): Schedule | undefined {
  const name = dtype === "bfloat16" ? "bf16" : dtype === "float16" ? "f16" : undefined;
  const { D, Dv, Hkv } = sizes;
  const fits = (k: Kernel): boolean => D <= k.D && (Dv <= k.Dv || (k.D === LARGEST && Dv <= LARGEST));
  const kernel = (rich ? RICH : PLAIN).find(fits);
  if (name === undefined || kernel === undefined) return undefined;
  const { rows, keys, threads } = kernel;
  // Rows in shared memory are 16 bytes longer than their numbers: see fragments.cuh.
  const shared = (rows + keys) * (2 * kernel.D + 16) + keys * (2 * kernel.Dv + 16);
  const slices = kernel.D === LARGEST ? Math.ceil(Dv / SLICE) : 1;
  return {
    launch: {
      kernel: `heed_cuda_attention_${name}_${kernel.D}${rich ? "_rich" : ""}`,
      grid: [sizes.tiles(rows), Hkv, slices],
      threads,
      shared,
    },
    rows,
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

/** Rows of a tile, keys that a warp takes at once, its stages and the warps of native/kernels/attention/decode.cuh. */
export const DECODE = { rows: 16, keys: 16, stages: 2, warps: 4, mostParts: 64 } as const;
/** Head sizes it is instantiated for. */
const DECODE_SIZES = [64, 128, 256];
/** Bytes of a staged number. */
const BYTES: Readonly<Record<DecodeProblem["storage"], number>> = { float: 2, codes: 1, int4: 0.5 };
/** Bytes of scale and zero in float32 for 16 keys and values, to a channel: 8 of a key's group, 8 / 32 of each of 16 values. */
const INT4_PAIRS = 12;
/** 16-bit terms of a key of 4-bit pages. */
const KEY_TERMS = { bf16: 3, f16: 2 } as const;
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
  const { rows, keys, stages, warps } = DECODE;
  const size = DECODE_SIZES.find((n) => p.D <= n && p.Dv <= n);
  const name = p.dtype === "bfloat16" ? "bf16" : p.dtype === "float16" ? "f16" : undefined;
  if (size === undefined || name === undefined || p.T * p.G > rows * p.N) return undefined;
  const staged = 2 * keys * (size * BYTES[p.storage] + 16) + (p.storage === "int4" ? INT4_PAIRS * size : 0);
  const terms = p.storage === "int4" ? KEY_TERMS[name] : 1;
  const unpacked = p.storage === "float" ? 0 : (terms + 1) * keys * (2 * size + 16);
  const shared = rows * (2 * size + 16) + warps * (stages * staged + unpacked);
  if (shared > limits.sharedPerBlock) return undefined;
  return meeting(p, rows, SMALLEST_PART, {
    kernel: `heed_cuda_decode_${name}_${size}${p.storage === "float" ? "" : `_${p.storage}`}`,
    threads: 32 * warps,
    shared,
  });
}

/** Of native/kernels/attention/latent.cuh. */
const LATENT = { D: 576, Dv: 512, rows: 64, keys: 32, stages: 2, threads: 256 } as const;
/** Fewest keys of a part: what its result costs, 64 rows of 512 in float32, is then a quarter of what it reads and stays in the level 2 cache. */
const SMALLEST_LATENT_PART = 512;

/** The kernel for pages whose values are a prefix of their keys, or undefined where the shared memory is too small for it. */
export function latentKernel(p: DecodeProblem, limits: DeviceLimits): DecodeSchedule | undefined {
  const { rows, keys, stages, threads } = LATENT;
  const name = p.dtype === "bfloat16" ? "bf16" : p.dtype === "float16" ? "f16" : undefined;
  const width = 2 * LATENT.D + 16;
  const shared = (rows + stages * keys) * width + rows * (2 * keys + 16) + 4 * rows * 4 + 16;
  if (
    name === undefined ||
    p.storage !== "float" ||
    p.D > LATENT.D ||
    p.Dv > LATENT.Dv ||
    shared > limits.sharedPerBlock
  )
    return undefined;
  return meeting(p, rows, SMALLEST_LATENT_PART, { kernel: `heed_cuda_latent_${name}`, threads, shared });
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
    partial: parts > 1 ? slots * p.Hkv * p.G * (p.Dv + 2) : 0,
  };
}
