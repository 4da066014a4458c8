import { DeviceError, EngineLoadError, engineNames, getEngine, HeedError } from "@heed/tensor";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openDriver } from "../src/devices.ts";
import { createCudaEngine } from "../src/engine.ts";
import { cuda, cudaDevices, cudaEmulated, cudaRefusal } from "../src/index.ts";
import { type Build, loadNative, prebuilt } from "../src/native.ts";
import { emulatedMissing } from "./support.ts";

const folder = mkdtempSync(join(tmpdir(), "heed-cuda-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function refused(run: () => unknown): HeedError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(HeedError);
    return error as HeedError;
  }
  throw new Error("nothing was refused");
}
describe("importing the package", () => {
  test("makes two engines known, the one on the device and its emulation", () => {
    expect(engineNames()).toEqual(expect.arrayContaining(["cuda", "cuda-emulated"]));
  });
  test("loads nothing: a process in which no engine is asked for has neither library nor driver", async () => {
    const script = `
      import "${import.meta.dir}/../src/index.ts";
      import { readFileSync } from "node:fs";
      const maps = process.platform === "linux" ? readFileSync("/proc/self/maps", "utf8") : "";
      console.log(/libheed_cuda|libcuda/.test(maps) ? "loaded" : "nothing");`;
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit" });
    expect((await new Response(child.stdout).text()).trim()).toBe("nothing");
    expect(await child.exited).toBe(0);
  });
});
describe.skipIf(emulatedMissing !== undefined)("a library", () => {
  const path = (name: string, contents: Uint8Array | string): string => {
    const at = join(folder, name);
    writeFileSync(at, contents);
    return at;
  };
  test("that is not there is refused by its path", () => {
    const error = refused(() => loadNative("cuda", join(folder, "none.so")));
    expect(error).toBeInstanceOf(EngineLoadError);
    expect(error.message).toContain("none.so: there is no such file");
  });
  test("that is no library, or cut off, is refused before it is opened", () => {
    expect(refused(() => loadNative("cuda", path("text.so", "no library"))).message).toContain("ELF");
    const whole = readFileSync(prebuilt("emulated"));
    const half = path("half.so", whole.subarray(0, whole.length >> 1));
    expect(refused(() => loadNative("emulated", half)).message).toContain("truncated");
  });
  test("of the other build is refused: emulated results are not taken for a device's", () => {
    const error = refused(() => loadNative("cuda", prebuilt("emulated")));
    expect(error).toBeInstanceOf(EngineLoadError);
    expect(error.message).toContain('it is the "emulated" library, not the "cuda" one');
  });
  for (const build of ["cuda", "emulated"] satisfies Build[])
    test(`as it comes with the package loads without a driver: ${build}`, () => {
      expect(loadNative(build).kernels.length).toBeGreaterThan(0);
    });
});
describe.skipIf(emulatedMissing !== undefined)("where there is no driver", () => {
  test("the error says what is missing and what to do", () => {
    const error = refused(() => openDriver(loadNative("cuda"), join(folder, "libcuda.so.1")));
    expect(error).toBeInstanceOf(EngineLoadError);
    expect(error.message).toStartWith("[cuda] no CUDA driver: ");
    expect(error.message).toContain("Install the NVIDIA driver");
    expect(error.message).toContain('use the engine "cpu"');
  });
  test("a file that is no driver is refused in words", () => {
    const error = refused(() => openDriver(loadNative("cuda"), prebuilt("emulated")));
    expect(error).toBeInstanceOf(EngineLoadError);
    expect(error.message).toContain("too old");
  });
  test.skipIf(cudaRefusal() === undefined)(
    "every way to the engine gives that one error, again and again",
    () => {
      const reason = cudaRefusal()!;
      for (const ask of [
        () => cuda(),
        () => cudaDevices(),
        () => getEngine("cuda"),
        () => cuda({ device: 1 }),
      ]) {
        const error = refused(ask);
        expect(error).toBeInstanceOf(EngineLoadError);
        expect(error.message).toBe(reason);
      }
      expect(refused(() => cuda()).message).toBe(reason);
    },
  );
});
describe.skipIf(emulatedMissing !== undefined)("devices", () => {
  test("the emulated one is told like any other", () => {
    const engine = cudaEmulated();
    expect(engine.name).toBe("cuda-emulated");
    expect(engine.device).toBe("cuda");
    expect(engine.description).toContain("emulated");
    const { device, name, multiprocessors, memory, sharedPerBlock, computeCapability, driver } = engine.cuda;
    expect(device).toBe(0);
    expect(name.length).toBeGreaterThan(0);
    expect(computeCapability).toMatch(/^\d+\.\d$/);
    expect(driver).toMatch(/^\d+\.\d$/);
    for (const n of [multiprocessors, memory, sharedPerBlock]) expect(n).toBeGreaterThan(0);
    expect(cudaRefusal("cuda-emulated")).toBeUndefined();
  });
  test("one that the driver does not see is refused with its number", () => {
    for (const device of [1, 7]) {
      const error = refused(() => createCudaEngine("none", "emulated", device));
      expect(["HEED_ARGUMENT", "HEED_DEVICE"]).toContain(error.code);
      expect(error.message).toContain(`${device}`);
      expect(error.details["device"]).toBe(device);
    }
  });
  test("a number that is none is an ArgumentError", () => {
    for (const device of [-1, 0.5, NaN])
      expect(refused(() => cuda({ device }))).toMatchObject({ code: "HEED_ARGUMENT" });
  });
  test("one engine for each, until it is closed", () => {
    const first = cudaEmulated();
    expect(cudaEmulated()).toBe(first);
    first.close();
    first.close();
    expect(refused(() => first.alloc(4))).toBeInstanceOf(DeviceError);
    expect(refused(() => first.alloc(4)).message).toContain("this engine was closed");
    const second = cudaEmulated();
    expect(second).not.toBe(first);
    expect(getEngine("cuda-emulated")).toBe(second);
  });
});
