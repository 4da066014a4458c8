import {
  type AttentionPlan,
  ArgumentError,
  attention,
  type Engine,
  fill,
  type FusedMode,
  type FusedOp,
  ones,
  rmsNorm,
  scope,
  toFloat64,
  UnsupportedError,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import { fakeEngine } from "./fake.ts";

/** A kernel that writes 7 to every output and counts its calls. */
function sevens(refusal?: string): FusedOp<AttentionPlan> & { runs: number } {
  return {
    runs: 0,
    refusal: () => refusal,
    run({ out }) {
      this.runs++;
      fill(out, 7);
    },
  };
}
function attend(engine: Engine, fused?: FusedMode): number[] {
  return scope(() => {
    const q = ones([1, 2, 1, 2], { engine });
    return [...toFloat64(attention(q, q, q, { fused }))];
  });
}

test("auto runs the kernel when it takes the plan", () => {
  const kernel = sevens();
  expect(attend(fakeEngine({ attention: kernel }))).toEqual([7, 7, 7, 7]);
  expect(attend(fakeEngine({ attention: kernel }), "auto")).toEqual([7, 7, 7, 7]);
  expect(kernel.runs).toBe(2);
});
test("auto runs the composed form when the kernel refuses or is absent", () => {
  const kernel = sevens("it is Monday");
  expect(attend(fakeEngine({ attention: kernel }), "auto")).toEqual([1, 1, 1, 1]);
  expect(attend(fakeEngine(), "auto")).toEqual([1, 1, 1, 1]);
  expect(kernel.runs).toBe(0);
});
test("off runs the composed form although there is a kernel", () => {
  const kernel = sevens();
  expect(attend(fakeEngine({ attention: kernel }), "off")).toEqual([1, 1, 1, 1]);
  expect(kernel.runs).toBe(0);
});
test("require runs the kernel, and throws its refusal in words", () => {
  expect(attend(fakeEngine({ attention: sevens() }), "require")).toEqual([7, 7, 7, 7]);
  let thrown: unknown;
  try {
    attend(fakeEngine({ attention: sevens("it is Monday") }), "require");
  } catch (error) {
    thrown = error;
  }
  expect(thrown).toBeInstanceOf(UnsupportedError);
  const { code, message, details } = thrown as UnsupportedError;
  expect(code).toBe("HEED_UNSUPPORTED");
  expect(message).toContain("it is Monday");
  expect(details).toEqual({ engine: "fake", refusal: "it is Monday" });
});
test("require names the engine that has no kernel", () => {
  expect(() => attend(fakeEngine({}, "bare"), "require")).toThrow('engine "bare" has no kernel');
});
test("the refusal sees the plan with its defaults resolved", () => {
  let seen: AttentionPlan | undefined;
  const refusal = (plan: AttentionPlan): string => {
    seen = plan;
    return "no";
  };
  const engine = fakeEngine({ attention: { refusal, run: () => {} } });
  scope(() => {
    const q = ones([1, 3, 4, 16], { engine });
    const k = ones([1, 5, 2, 16], { engine });
    attention(q, k, k, { isCausal: true, window: { left: 2 } });
  });
  expect(seen!.dims).toEqual({ B: 1, S: 3, Sk: 5, Hq: 4, Hkv: 2, D: 16, Dv: 16 });
  expect(seen!.rules).toMatchObject({
    scale: 0.25,
    softcap: 0,
    windowLeft: 2,
    windowRight: 0,
    queryOffset: "end",
  });
  expect(seen!.lse).toBeUndefined();
});
test("an operation of nothing asks no kernel", () => {
  const kernel = sevens();
  const engine = fakeEngine({ attention: kernel });
  scope(() => {
    const q = ones([0, 2, 1, 2], { engine });
    expect(attention(q, q, q, { fused: "require" }).shape).toEqual([0, 2, 1, 2]);
  });
  expect(kernel.runs).toBe(0);
});
test("an unknown mode is an ArgumentError", () => {
  expect(() => attend(fakeEngine(), "always" as FusedMode)).toThrow(ArgumentError);
});
test("an error of the kernel reaches the caller, and nothing leaks", () => {
  const run = (): never => {
    throw new RangeError("kernel");
  };
  const engine = fakeEngine({ rmsNorm: { refusal: () => undefined, run } });
  using x = ones([2, 2], { engine });
  expect(() => rmsNorm(x)).toThrow(RangeError);
});
