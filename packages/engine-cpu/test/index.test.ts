import {
  ArgumentError,
  engineNames,
  getEngine,
  HeedError,
  matmul,
  randn,
  setDefaultEngine,
} from "@heed/tensor";
import { afterEach, describe, expect, test } from "bun:test";
import * as api from "../src/index.ts";
import { missing } from "../src/native.ts";
import { bun } from "./child.ts";

const native = describe.skipIf(missing !== undefined);

describe("engines", () => {
  test("importing the package registers both", () => {
    expect(engineNames().toSorted()).toEqual(["cpu", "portable"]);
    expect(api.portable().name).toBe("portable");
    expect(api.portable().description).toContain("TypeScript");
  });
  test("setDefaultEngine chooses where tensors without an engine go", () => {
    const before = getEngine().name;
    setDefaultEngine("portable");
    using t = randn([2, 2]);
    expect(t.engine).toBe(api.portable());
    setDefaultEngine(before);
  });
  test("without a library the default is portable, and it says why", () => {
    const { text } = bun(["test/index.child.ts"]);
    const seen = JSON.parse(text) as Record<string, never>;
    expect(seen).toMatchObject({ names: ["portable", "cpu"], name: "portable", product: 11 });
    expect(seen["description"]).toMatch(/no native library for plan9-/);
    expect(seen["floorReason"]).toMatch(/^portable: no native library for plan9-/);
    expect(seen["refusal"]).toMatchObject({
      code: "HEED_ENGINE_LOAD",
      message: expect.stringContaining("plan9"),
    });
  });
});
native("the native engine", () => {
  afterEach(() => {
    api.setThreads(0);
    api.selectIsa(process.env["HEED_CPU_TARGET"]);
  });
  test("it is the default, and says what is in use", () => {
    expect(getEngine()).toBe(api.cpu());
    expect(api.floorReason).toMatch(/^native: /);
    expect(api.cpu().description).toContain(api.isa());
  });
  test("threads are settable from 1 to 256; 0 is the physical cores", () => {
    api.setThreads(3);
    expect(api.threads()).toBe(3);
    api.setThreads(0);
    expect(api.threads()).toBeGreaterThanOrEqual(1);
    for (const bad of [-1, 257, 1.5, NaN, Infinity]) expect(() => api.setThreads(bad)).toThrow(ArgumentError);
  });
  test("every instruction set that the processor has can be selected", () => {
    expect(api.availableIsas()).toContain(api.isa());
    for (const name of api.availableIsas()) {
      api.selectIsa(name);
      expect(api.isa()).toBe(name);
    }
  });
  test("an unknown instruction set is refused and changes nothing", () => {
    const before = api.isa();
    expect(() => api.selectIsa("v9")).toThrow(HeedError);
    expect(() => api.selectIsa("v9")).toThrow(/v9/);
    expect(api.isa()).toBe(before);
  });
  test("peaks are rates", () => {
    for (const kind of ["fma-f32", "read"] as const) {
      const peak = api.measurePeak(kind, { threads: 1 });
      expect(peak).toBeGreaterThan(1e6);
      expect(peak).toBeLessThan(1e15);
    }
  });
  test("scratch is kept between calls and given back on request", () => {
    using a = randn([300, 300], { engine: "cpu" });
    matmul(a, a)[Symbol.dispose]();
    expect(api.scratchBytes()).toBeGreaterThan(0);
    api.setThreads(1);
    api.releaseScratch();
    matmul(a, a)[Symbol.dispose]();
    expect(api.scratchBytes()).toBeGreaterThan(0);
  });
});
