import { describe, expect, test } from "bun:test";
import {
  checkDirectionalGradient,
  checkGradient,
  createRng,
  directionalDerivative,
  finiteDifference,
  randomUpstream,
} from "../src/index.ts";

/** sum of sin(x_i) * x_{i+1}, cyclic. */
const f = (x: Float64Array): number => x.reduce((sum, v, i) => sum + Math.sin(v) * x[(i + 1) % x.length]!, 0);
const gradient = (x: Float64Array): Float64Array =>
  x.map((v, i) => Math.cos(v) * x[(i + 1) % x.length]! + Math.sin(x[(i + x.length - 1) % x.length]!));
const x = createRng(1).normalArray(12);

describe("finite differences", () => {
  test("reach about twelve digits", () => {
    for (let i = 0; i < x.length; i++)
      expect(Math.abs(finiteDifference(f, x, i) - gradient(x)[i]!)).toBeLessThan(1e-11);
  });

  test("leave x as it was", () => {
    const before = [...x];
    finiteDifference(f, x, 3);
    expect([...x]).toEqual(before);
  });

  test("agree with the directional derivative along an axis", () => {
    const axis = new Float64Array(x.length);
    axis[4] = 1;
    expect(directionalDerivative(f, x, axis)).toBeCloseTo(gradient(x)[4]!, 10);
  });
});

describe("checkGradient", () => {
  test("accepts the right gradient, whole or sampled", () => {
    checkGradient(f, x, gradient(x));
    checkGradient(f, x, gradient(x), { samples: 3 });
    checkDirectionalGradient(f, x, gradient(x));
  });

  test("names the coordinate that is wrong by a millionth", () => {
    const wrong = gradient(x);
    wrong[7]! += 1e-6;
    expect(() => checkGradient(f, x, wrong, { name: "dx" })).toThrow(/^dx\[7\]: got .* central difference/);
    expect(() => checkDirectionalGradient(f, x, wrong, { name: "dx" })).toThrow(
      /^dx: along a random direction/,
    );
  });

  test("NaN fails, in the gradient and in the function", () => {
    const wrong = gradient(x);
    wrong[2] = NaN;
    expect(() => checkGradient(f, x, wrong)).toThrow(/\[2\]: got NaN/);
    expect(() => checkGradient(() => NaN, x, gradient(x))).toThrow(/central difference NaN/);
    expect(() => checkDirectionalGradient(f, x, wrong)).toThrow(/NaN/);
  });

  test("refuses a gradient of another length", () => {
    expect(() => checkGradient(f, x, [1])).toThrow(/grad must have 12 elements; got 1/);
  });
});

test("an upstream gradient is random, not constant", () => {
  expect(new Set(randomUpstream(createRng(2), 50)).size).toBe(50);
});
