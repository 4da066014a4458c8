/** Which attention kernel takes which problem, without a device. */
import { describe, expect, test } from "bun:test";
import type { DeviceLimits } from "../../src/launch.ts";
import {
  anyKernel,
  decodeKernel,
  type DecodeProblem,
  latentKernel,
  type Sizes,
  tensorCores,
} from "../../src/fused/attention/schedule.ts";

const limits = (sharedPerBlock: number, computeCapability = 90): DeviceLimits => ({
  multiprocessors: 132,
  sharedPerBlock,
  computeCapability,
  level2Bytes: 50 * 2 ** 20,
});
const HOPPER = limits(227 * 1024);
/** What compute capability 8.6, 8.9 and 12.0 let a block have. */
const SMALLEST = limits(99 * 1024, 86);
const AMPERE = limits(163 * 1024, 80);
const sizes = (D: number, Dv = D): Sizes => ({ D, Dv, Hkv: 8, tiles: (rows) => Math.ceil(1000 / rows) });
const decode = (over: Partial<DecodeProblem> = {}): DecodeProblem => ({
  ...sizes(128),
  dtype: "bfloat16",
  storage: "float",
  G: 4,
  N: 3,
  T: 3,
  capacity: 4096,
  ...over,
});

describe("attention on tensor cores", () => {
  test.each([
    [64, 64, "64", "64"],
    [65, 65, "96", "128"],
    [80, 80, "96", "128"],
    [128, 128, "128", "128"],
    [129, 64, "192", "256"],
    [192, 128, "192", "256"],
    [192, 192, "256", "256"],
    [256, 256, "256", "256"],
    [264, 264, "512", "512"],
    [512, 512, "512", "512"],
  ])("takes head sizes %p and %p by the kernel of size %p, with rules of %p", (D, Dv, size, withRules) => {
    expect(tensorCores("bfloat16", sizes(D, Dv), false, AMPERE)?.launch.kernel).toBe(
      `heed_cuda_attention_bf16_${size}`,
    );
    expect(tensorCores("float16", sizes(D, Dv), true, HOPPER)?.launch.kernel).toBe(
      `heed_cuda_attention_f16_${withRules}_rich`,
    );
  });
  test.each([
    [64, 64, "64_warpgroup", [6, 8, 1], 512],
    [80, 80, "128_warpgroup", [8, 8, 1], 384],
    [128, 64, "128_warpgroup", [8, 8, 1], 384],
    [192, 128, "192_warpgroup", [8, 8, 1], 384],
    [192, 192, "256_warpgroup", [8, 8, 1], 384],
    [264, 264, "512", [16, 8, 2], 128],
  ] as const)("takes head sizes %p and %p on 9.0 by %p, which has wgmma", (D, Dv, kernel, grid, threads) => {
    const launch = tensorCores("bfloat16", sizes(D, Dv), false, HOPPER)!.launch;
    expect(launch).toMatchObject({ kernel: `heed_cuda_attention_bf16_${kernel}`, grid, threads });
    expect(launch.shared).toBeLessThanOrEqual(HOPPER.sharedPerBlock);
    expect(
      tensorCores("bfloat16", sizes(D, Dv), false, limits(227 * 1024, 100))!.launch.kernel,
    ).not.toContain("warpgroup");
  });
  test("leaves 9.0 to the kernel without tensor cores where the shared memory is short of what wgmma takes", () => {
    expect(tensorCores("bfloat16", sizes(128), false, limits(99 * 1024))).toBeUndefined();
    expect(tensorCores("bfloat16", sizes(128), true, limits(99 * 1024))).toBeDefined();
  });
  test("leaves other dtypes and larger heads to the kernel without them", () => {
    for (const dtype of ["float32", "float64"] as const)
      expect(tensorCores(dtype, sizes(64), false, HOPPER)).toBeUndefined();
    expect(tensorCores("bfloat16", sizes(513), false, HOPPER)).toBeUndefined();
  });
  test("fits the smallest shared memory of the architectures it is built for", () => {
    for (const rich of [false, true])
      for (const D of [64, 96, 128, 192, 256, 512])
        expect(
          tensorCores("float16", sizes(D, Math.min(D, D === 192 ? 128 : D)), rich, SMALLEST)!.launch.shared,
        ).toBeLessThanOrEqual(SMALLEST.sharedPerBlock);
  });
  test("covers the rows by tiles, the key heads, and values past 256 by slices", () => {
    expect(tensorCores("bfloat16", sizes(128), false, AMPERE)?.launch.grid).toEqual([8, 8, 1]);
    expect(tensorCores("bfloat16", sizes(512), false, AMPERE)?.launch.grid).toEqual([16, 8, 2]);
    expect(tensorCores("bfloat16", sizes(512, 200), false, AMPERE)?.launch.grid).toEqual([16, 8, 1]);
  });
});

describe("attention without tensor cores", () => {
  test("takes fewer keys at a time where the shared memory is short, and none where one does not fit", () => {
    expect(anyKernel("float32", sizes(64), SMALLEST)?.keys).toBe(32);
    const wide = anyKernel("float64", sizes(256), SMALLEST)!;
    expect(wide.keys).toBeGreaterThan(0);
    expect(wide.keys).toBeLessThan(32);
    expect(wide.launch.shared).toBeLessThanOrEqual(SMALLEST.sharedPerBlock);
    expect(anyKernel("float64", sizes(1024), SMALLEST)).toBeUndefined();
  });
});

describe("decode", () => {
  test("cuts by 256 keys, into 48 parts at most, and finds memory for all that the pages can hold", () => {
    const short = decodeKernel(decode({ capacity: 256 }), HOPPER)!;
    expect([short.launch.grid[2], short.counters, short.partial]).toEqual([1, 0, 0]);
    const long = decodeKernel(decode({ capacity: 2 ** 20 }), HOPPER)!;
    expect(long.launch.grid[2]).toBe(48);
    expect(long.counters).toBe(3 * 8);
    expect(long.partial).toBe((2 ** 20 / 256 + 3 + 1) * 8 * 4 * 132);
  });
  test("is for rows that fit a tile of 16", () => {
    expect(decodeKernel(decode({ T: 12 }), HOPPER)?.launch.kernel).toBe("heed_cuda_decode_bf16_128");
    expect(decodeKernel(decode({ T: 13 }), HOPPER)).toBeUndefined();
    expect(decodeKernel(decode({ G: 17 }), HOPPER)).toBeUndefined();
  });
  test("reads codes of 8 bits, and leaves what its shared memory does not hold", () => {
    expect(
      decodeKernel(decode({ storage: "codes", dtype: "float16", D: 64, Dv: 40 }), SMALLEST)?.launch.kernel,
    ).toBe("heed_cuda_decode_f16_64_codes");
    expect(decodeKernel(decode({ D: 256, Dv: 256 }), HOPPER)).toBeDefined();
    expect(decodeKernel(decode({ storage: "int4", D: 40, Dv: 64 }), SMALLEST)?.launch).toMatchObject({
      kernel: "heed_cuda_decode_bf16_64_int4",
      // 16 queries; of each of 4 warps two stages of 32 keys and values, with scales and zeros of 64 channels, and of 32 values, two groups.
      shared: 16 * 144 + 4 * 2 * (2 * 32 * 48 + 2 * 64 * 4 + 2 * 32 * 2 * 4),
    });
    expect(decodeKernel(decode({ storage: "int4", dtype: "float16" }), SMALLEST)).toBeDefined();
    expect(decodeKernel(decode({ ...sizes(256), storage: "int4" }), HOPPER)).toBeDefined();
    expect(decodeKernel(decode({ D: 256, Dv: 256 }), SMALLEST)).toBeUndefined();
    expect(decodeKernel(decode({ dtype: "float32" }), HOPPER)).toBeUndefined();
  });
});

describe("latent decode", () => {
  const problem = decode({ ...sizes(576, 512), Hkv: 1, G: 128 });
  test("takes 64 of the heads at a time", () => {
    const { launch } = latentKernel(problem, HOPPER)!;
    expect(launch).toMatchObject({ kernel: "heed_cuda_latent_bf16_64", threads: 256 });
    expect(launch.shared).toBeLessThanOrEqual(HOPPER.sharedPerBlock);
  });
  test("has smaller tiles where there is less shared memory", () => {
    const { launch } = latentKernel(problem, { ...HOPPER, sharedPerBlock: 163 << 10 })!;
    expect(launch).toMatchObject({ kernel: "heed_cuda_latent_bf16_32", shared: 153_600 });
  });
  test("has blocks for all parts that the pages may hold, whose results a second launch adds up", () => {
    const many = {
      ...problem,
      N: 16,
      T: 16,
      capacity: 16 * 4096,
      tiles: (rows: number) => (16 * 128) / rows + 16,
    };
    expect(latentKernel(many, HOPPER)).toMatchObject({
      launch: { grid: [32 + 2 * 128, 1, 1] },
      merge: { kernel: "heed_cuda_latent_merge_bf16", grid: [16, 1, 32], threads: 128 },
      partial: (128 + 16 + 1) * 128 * 516,
    });
    expect(latentKernel({ ...many, N: 1, capacity: 512 }, HOPPER)!.merge).toBeUndefined();
  });
  test("needs the shared memory of a large chip, 16-bit rows and a head size up to 576", () => {
    expect(latentKernel(problem, SMALLEST)).toBeUndefined();
    expect(latentKernel({ ...problem, D: 577 }, HOPPER)).toBeUndefined();
    expect(latentKernel({ ...problem, dtype: "float32" }, HOPPER)).toBeUndefined();
  });
});
