/** Which kernels of attention's backward pass take which problem, and their grids, without a device. */
import { describe, expect, test } from "bun:test";
import {
  anyKernels,
  type BackwardSizes,
  maskLaunch,
  sinksLaunch,
  statisticsLaunch,
  tensorCores,
} from "../../src/fused/attention/backward-schedule.ts";
import { isWithinReach } from "../../src/fused/attention/backward.ts";
import type { DeviceLimits } from "../../src/launch.ts";

const limits = (sharedPerBlock: number): DeviceLimits => ({
  multiprocessors: 132,
  sharedPerBlock,
  computeCapability: 90,
  level2Bytes: 50 * 2 ** 20,
});
/** What compute capability 8.6, 8.9 and 12.0 let a block have. */
const SMALLEST = limits(99 * 1024);
const sizes = (D: number, Dv = D, over: Partial<BackwardSizes> = {}): BackwardSizes => ({
  B: 2,
  S: 100,
  Sk: 300,
  Hq: 12,
  Hkv: 4,
  D,
  Dv,
  ...over,
});

describe("attention backward on tensor cores", () => {
  test.each([
    [8, 8, "64", "64"],
    [64, 65, "96", "128"],
    [128, 128, "128", "128"],
    [129, 64, "192", "256"],
    [192, 128, "192", "256"],
    [192, 129, "256", "256"],
    [256, 256, "256", "256"],
  ])("takes head sizes %p and %p by the kernels of size %p, with rules of %p", (D, Dv, size, withRules) => {
    const plain = tensorCores("bfloat16", sizes(D, Dv), false, SMALLEST)!;
    expect(plain.keys.launch.kernel).toBe(`heed_cuda_attention_backward_keys_bf16_${size}`);
    expect(plain.rows.launch.kernel).toBe(`heed_cuda_attention_backward_rows_bf16_${size}`);
    const rich = tensorCores("float16", sizes(D, Dv), true, SMALLEST)!;
    expect(rich.rows.launch.kernel).toBe(`heed_cuda_attention_backward_rows_f16_${withRules}_rich`);
  });
  test("leaves tensors past 64 GiB, which 32 bits cannot count in units of 16 bytes, to the kernels without them", () => {
    const strides = [2 ** 34, 64, 1];
    expect(isWithinReach({ shape: [2, 2 ** 28, 64], strides })).toBe(true);
    expect(isWithinReach({ shape: [3, 2 ** 28, 64], strides })).toBe(false);
    expect(isWithinReach({ shape: [0, 2 ** 28, 64], strides })).toBe(true);
  });
  test("leaves other dtypes and larger heads to the kernels without them", () => {
    for (const dtype of ["float32", "float64"] as const)
      expect(tensorCores(dtype, sizes(64), false, SMALLEST)).toBeUndefined();
    expect(tensorCores("bfloat16", sizes(257), false, SMALLEST)).toBeUndefined();
    expect(tensorCores("bfloat16", sizes(64, 257), true, SMALLEST)).toBeUndefined();
  });
  test("fits the smallest shared memory of the architectures it is built for", () => {
    for (const rich of [false, true])
      for (const [D, Dv] of [
        [64, 64],
        [96, 96],
        [128, 128],
        [192, 128],
        [256, 256],
      ] as const)
        for (const { launch } of Object.values(tensorCores("float16", sizes(D, Dv), rich, SMALLEST)!))
          expect(launch.shared).toBeLessThanOrEqual(SMALLEST.sharedPerBlock);
  });
  test("covers keys, and the rows of a group, by tiles; columns of large heads by slices", () => {
    const small = tensorCores("bfloat16", sizes(64), false, SMALLEST)!;
    expect(small.keys).toMatchObject({ tiles: 5, launch: { grid: [10, 4, 1] } });
    expect(small.rows).toMatchObject({ tiles: 3, launch: { grid: [6, 4, 1] } });
    const large = tensorCores("bfloat16", sizes(256), true, SMALLEST)!;
    expect(large.keys).toMatchObject({ tiles: 5, launch: { grid: [10, 4, 2] } });
    expect(large.rows).toMatchObject({ tiles: 5, launch: { grid: [10, 4, 1] } });
  });
});

describe("attention backward by pairs of warps and by tall tiles of rows, at head size 128", () => {
  const at = (sharedPerBlock: number, rich = false) =>
    tensorCores("bfloat16", sizes(128), rich, limits(sharedPerBlock))!;
  test("runs where two blocks fit a multiprocessor: on 9.0, not on 8.0 or 8.6", () => {
    const tall = at(227 * 1024);
    expect(tall.rows).toMatchObject({
      tiles: 3,
      launch: { kernel: "heed_cuda_attention_backward_rows_bf16_128_tall", shared: 104448 },
    });
    expect(tall.keys).toMatchObject({
      tiles: 5,
      launch: { kernel: "heed_cuda_attention_backward_keys_bf16_128_pairs", shared: 103424 },
    });
    for (const shared of [163 * 1024, 99 * 1024])
      for (const side of ["keys", "rows"] as const)
        expect(at(shared)[side]).toMatchObject({
          tiles: 5,
          launch: { kernel: `heed_cuda_attention_backward_${side}_bf16_128`, shared: 69632 },
        });
    const just = 2 * (104448 + 1024) - 1024;
    expect([just - 1, just].map((shared) => at(shared).rows.tiles)).toEqual([5, 3]);
  });
  test("leaves other rules and sizes as they are", () => {
    expect(at(227 * 1024, true)).toEqual(at(99 * 1024, true));
    for (const D of [64, 96, 192, 256])
      expect(tensorCores("float16", sizes(D), false, limits(227 * 1024))).toEqual(
        tensorCores("float16", sizes(D), false, SMALLEST),
      );
  });
});

describe("attention backward without tensor cores", () => {
  test("takes smaller tiles where the shared memory is short, and none where one row does not fit", () => {
    expect(anyKernels("float32", sizes(64), SMALLEST)?.edge).toBe(16);
    const wide = anyKernels("float64", sizes(256), SMALLEST)!;
    expect(wide.edge).toBe(8);
    for (const { launch } of [wide.keys, wide.rows])
      expect(launch.shared).toBeLessThanOrEqual(SMALLEST.sharedPerBlock);
    expect(wide.maskShared).toBeLessThanOrEqual(SMALLEST.sharedPerBlock);
    expect(anyKernels("float64", sizes(4096), SMALLEST)).toBeUndefined();
  });
  test("covers keys and rows by tiles, and computes 16-bit floats in float32", () => {
    const { keys, rows } = anyKernels("bfloat16", sizes(300), SMALLEST)!;
    expect(keys.launch.kernel).toBe("heed_cuda_attention_backward_keys_any_f32");
    const edge = anyKernels("bfloat16", sizes(300), SMALLEST)!.edge;
    expect(keys.launch.grid).toEqual([2 * Math.ceil(300 / edge), 4, 1]);
    expect(rows.launch.grid).toEqual([2 * Math.ceil(300 / edge), 4, 1]);
  });
});

describe("the other launches of attention backward", () => {
  const any = anyKernels("bfloat16", sizes(64), SMALLEST)!;
  test("give the mask a block for each tile of places, one place along an axis that it is broadcast over", () => {
    const full = maskLaunch("bfloat16", sizes(64), [360000, 30000, 300, 1], any);
    expect(full).toMatchObject({ kernel: "heed_cuda_attention_backward_mask_f32", grid: [19, 24, 7] });
    expect(maskLaunch("float64", sizes(64), [0, 0, 300, 1], any).grid).toEqual([19, 1, 7]);
    expect(maskLaunch("bfloat16", sizes(64), [0, 1, 0, 0], any).grid).toEqual([1, 12, 1]);
  });
  test("keep a grid within its bounds", () => {
    const long = sizes(64, 64, { B: 300, Hq: 300, Hkv: 300, S: 2 ** 21 });
    expect(maskLaunch("bfloat16", long, [1, 1, 1, 1], any).grid).toEqual([19, 65535, 65535]);
    expect(statisticsLaunch("bfloat16", long).grid).toEqual([1056, 1, 1]);
  });
  test("give a row a warp, and a head of the sinks a block", () => {
    expect(statisticsLaunch("float64", sizes(64, 64, { B: 1, S: 3, Hq: 1 }))).toMatchObject({
      grid: [1, 1, 1],
      threads: 96,
    });
    expect(statisticsLaunch("float32", sizes(64))).toMatchObject({ grid: [300, 1, 1], threads: 256 });
    expect(sinksLaunch("float32", sizes(64)).grid).toEqual([12, 1, 1]);
  });
});
