import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  decodeArray,
  decodeBfloat16,
  encodeArray,
  encodeBfloat16,
  floatDTypes,
  roundTo,
  unitRoundoff,
} from "../src/index.ts";

test("bfloat16 ties go to the even neighbour", () => {
  expect(encodeBfloat16(1 + 2 ** -8)).toBe(0x3f80);
  expect(encodeBfloat16(1 + 3 * 2 ** -8)).toBe(0x3f82);
  expect(encodeBfloat16(-(1 + 3 * 2 ** -8))).toBe(0xbf82);
});

test("bfloat16 does not round twice", () => {
  // float32 rounds 1 + 2^-8 + 2^-40 down onto the tie; the number itself lies above it.
  expect(encodeBfloat16(1 + 2 ** -8 + 2 ** -40)).toBe(0x3f81);
  expect(encodeBfloat16(1 + 3 * 2 ** -8 - 2 ** -40)).toBe(0x3f81);
});

test("bfloat16 keeps infinities, zeros and NaN, and overflows to infinity", () => {
  for (const x of [Infinity, -Infinity, 0, -0, NaN]) expect(decodeBfloat16(encodeBfloat16(x))).toBe(x);
  expect(roundTo("bfloat16", 3.4e38)).toBe(Infinity);
  expect(roundTo("bfloat16", -1e300)).toBe(-Infinity);
  expect(roundTo("bfloat16", 3.38e38)).toBeLessThan(Infinity);
});

test("every bfloat16 value survives a round trip", () => {
  for (let bits = 0; bits < 0x10000; bits++) {
    const value = decodeBfloat16(bits);
    if (!Number.isNaN(value)) expect(encodeBfloat16(value)).toBe(bits);
  }
});

test("rounding is idempotent and within the unit roundoff", () => {
  const normalRange = fc.double({ min: 2 ** -10, max: 2 ** 10, noNaN: true });
  fc.assert(
    fc.property(fc.constantFrom(...floatDTypes), normalRange, (dtype, x) => {
      const rounded = roundTo(dtype, x);
      expect(roundTo(dtype, rounded)).toBe(rounded);
      expect(Math.abs(rounded - x)).toBeLessThanOrEqual(unitRoundoff[dtype] * x);
    }),
  );
});

test("stored arrays decode to the rounded values", () => {
  const x = [1 / 3, -2.7, 1e-3, 65504];
  for (const dtype of floatDTypes)
    expect([...decodeArray(dtype, encodeArray(dtype, x))]).toEqual(x.map((value) => roundTo(dtype, value)));
});
