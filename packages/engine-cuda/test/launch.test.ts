import { SOFTMAX } from "@heed/tensor/native";
import { add, DeviceError, type HeedError, softmax, tensor, UnsupportedError, zeros } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { Context } from "../src/context.ts";
import { createDevice } from "../src/device.ts";
import { SOFTMAX_ARGS } from "../src/core/structs.ts";
import { describeDevice, limitsOf, openNative } from "../src/devices.ts";
import { cudaEmulated } from "../src/index.ts";
import type { Launch } from "../src/launch.ts";
import { LAUNCH_INFO } from "../src/structs.ts";
import { emulatedMissing } from "./support.ts";

const native = openNative;
const limits = () => limitsOf(describeDevice(native("emulated"), 0));
const open = (): { context: Context; device: ReturnType<typeof createDevice> } => {
  const context = new Context(native("emulated"), 0);
  return { context, device: createDevice(context, limits()) };
};
function failure(run: () => unknown): HeedError {
  try {
    run();
  } catch (error) {
    return error as HeedError;
  }
  throw new Error("nothing failed");
}
/** A launch of the kernel that adds, with bytes of its block. */
function adding(context: Context): { launch: Launch; bytes: number } {
  const kernel = native("emulated").kernels.find((name) => name.startsWith("heed_cuda_softmax_"))!;
  const { parameterBytes } = context.kernel(kernel);
  return { launch: { kernel, grid: [1, 1, 1], threads: 32, shared: 256 }, bytes: parameterBytes };
}

describe.skipIf(emulatedMissing !== undefined)("a launch", () => {
  test("of a kernel that there is not is an UnsupportedError with its name", () => {
    const { context, device } = open();
    const launch = { kernel: "heed_cuda_none", grid: [1, 1, 1], threads: 32, shared: 0 } as const;
    const error = failure(() => device.launch(launch, 8));
    expect(error).toBeInstanceOf(UnsupportedError);
    expect(error.details["kernel"]).toBe("heed_cuda_none");
    context.close();
  });
  test("that the device cannot run is refused with the numbers, and the next one runs", () => {
    const { context, device } = open();
    const { launch, bytes } = adding(context);
    const wrong: readonly [Partial<Launch>, number, string][] = [
      [{}, bytes + 8, `${bytes + 8}`],
      [{}, bytes - 8, `${bytes - 8}`],
      [{ threads: 0 }, bytes, "0"],
      [{ threads: 100_000 }, bytes, "100000"],
      [{ grid: [0, 1, 1] }, bytes, "0 x 1 x 1"],
      [{ grid: [1, 65_536, 1] }, bytes, "65536"],
      [{ shared: 2 ** 30 }, bytes, `${2 ** 30}`],
    ];
    for (const [change, size, words] of wrong) {
      const error = failure(() => device.launch({ ...launch, ...change }, size));
      expect(error.code).toBe("HEED_ARGUMENT");
      expect(error.message).toContain(launch.kernel);
      expect(error.message).toContain(words);
    }
    expect(context.lost).toBe(false);
    context.close();
  });
});
describe.skipIf(emulatedMissing !== undefined)("a product by cuBLAS", () => {
  test("is declined where there is no cuBLAS, and the library is asked once", () => {
    const { context, device } = open();
    const { gemm } = context;
    let asked = 0;
    context.gemm = function (info) {
      asked++;
      return gemm.call(this, info);
    };
    const sizes = { m: 1, n: 1, k: 1, batch: 1, lda: 1, ldb: 1, ldc: 1, strideA: 0, strideB: 0, strideC: 0 };
    const memory = device.temporary(12);
    const [a, b, c] = [0, 4, 8].map((at) => memory.address + at) as [number, number, number];
    for (let i = 0; i < 3; i++)
      expect(
        device.gemm({
          dtype: "float32",
          transposeA: false,
          transposeB: false,
          ...sizes,
          a,
          b,
          c,
          alpha: 1,
          beta: 0,
        }),
      ).toBe(false);
    expect(asked).toBe(1);
    expect(context.gemmLibrary).toBe("");
    memory[Symbol.dispose]();
    context.close();
  });
});
describe.skipIf(emulatedMissing !== undefined)("why", () => {
  test("tells what a kernel refuses, that there is none, or nothing", () => {
    const { name, why } = cudaEmulated();
    expect(name).toBe("cuda-emulated");
    const engine = cudaEmulated();
    const fused = engine.fused as { -readonly [K in keyof typeof engine.fused]: unknown };
    const before = fused.sealPages;
    const plan = {} as Parameters<typeof why<"sealPages">>[1];
    try {
      for (const [kernel, reason] of [
        [undefined, 'engine "cuda-emulated" has no kernel for it'],
        [{ refusal: () => "pages are too small", run: () => {} }, "pages are too small"],
        [{ refusal: () => undefined, run: () => {} }, undefined],
      ] as const) {
        fused.sealPages = kernel;
        expect(engine.why("sealPages", plan)).toBe(reason);
      }
    } finally {
      fused.sealPages = before;
    }
  });
});
describe.skipIf(emulatedMissing !== undefined)("a context that a kernel loses", () => {
  /** Has a kernel reach past its block's shared memory, of which the launch gives it none. */
  function fault(context: Context): HeedError {
    const device = createDevice(context, limits());
    using memory = device.temporary(4096);
    const { block } = device;
    const { fields, bytes } = SOFTMAX_ARGS;
    block.begin(bytes, 0);
    for (const at of [SOFTMAX.fields.x, SOFTMAX.fields.out])
      block.view(at, memory.address, "float32", [1, 1024], [1024, 1]);
    block.int64(fields.rows, 1);
    block.int32(fields.lanes, 256);
    block.int32(fields.reserved, 0);
    const launch = { kernel: "heed_cuda_softmax_float32", grid: [1, 1, 1], threads: 256, shared: 0 } as const;
    return failure(() => device.launch(launch, bytes));
  }
  test("says what was run and the driver's name of the error, and so does every later call", () => {
    const context = new Context(native("emulated"), 0);
    const error = fault(context);
    expect(error).toBeInstanceOf(DeviceError);
    expect(error.message).toContain("heed_cuda_softmax_float32");
    expect(error.message).toContain("open a new engine");
    expect(error.details["driverError"]).toMatch(/^CUDA_ERROR_/);
    expect(error.details["driverCode"]).toBeGreaterThan(0);
    expect(context.lost).toBe(true);
    const later = failure(() => context.alloc(8));
    expect(later).toBeInstanceOf(DeviceError);
    expect(later.message).toContain("was lost");
    context.free(1); // of which nothing is left
    context.close();
    expect(failure(() => context.alloc(8)).message).toContain("closed");
  });
  test("is replaced by a new engine, whose device works; tensors of the old one can be disposed", async () => {
    const lost = cudaEmulated();
    const t = tensor([1, 2], undefined, { engine: lost });
    using u = tensor([3], undefined, { engine: lost });
    using wide = zeros([1, 1024], { engine: lost });
    const { launch } = Context.prototype;
    Context.prototype.launch = function (info) {
      new DataView(info.buffer).setUint32(LAUNCH_INFO.fields.shared, 0, true);
      launch.call(this, info);
    };
    try {
      expect(() => softmax(wide)).toThrow(DeviceError);
    } finally {
      Context.prototype.launch = launch;
    }
    expect(lost.lost).toBe(true);
    await expect(t.read()).rejects.toThrow("was lost");
    t[Symbol.dispose]();
    const engine = cudaEmulated();
    expect(engine).not.toBe(lost);
    using x = tensor([1, 2], undefined, { engine });
    using y = add(x, 1);
    expect([...(await y.read())]).toEqual([2, 3]);
    expect(() => add(x, u)).toThrow("different engines");
  });
});
