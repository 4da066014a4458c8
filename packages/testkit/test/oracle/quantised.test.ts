import {
  codeValue,
  createRng,
  decodeGroupOracle,
  decodeRowOracle,
  encodeGroupOracle,
  encodeRowOracle,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";

const rng = createRng(1);
const rows = [
  ...Array.from({ length: 30 }, () => Float32Array.from(rng.normalArray(16))),
  Float32Array.of(0, -0, 0),
  Float32Array.of(448, 1, 2 ** -9, -(2 ** -10), 17, 18, 19, 464 / 2),
  Float32Array.of(127, 0.5, 1.5, -0.5, 2.5),
  Float32Array.of(2 ** -149, 0),
];
describe.each(["int8", "float8e4m3"] as const)("%s rows", (format) => {
  test("have the code whose value is nearest to the quotient, of two the even one", () => {
    for (const row of rows) {
      const { codes, scale } = encodeRowOracle(format, row);
      row.forEach((x, i) => {
        const y = Math.fround(x / scale);
        const got = Math.abs(codeValue(format, codes[i]!) - y);
        for (let code = 0; code < 256; code++) {
          const other = Math.abs(codeValue(format, code) - y);
          expect(other < got).toBe(false);
          if (other === got && codeValue(format, code) !== codeValue(format, codes[i]!))
            expect(codes[i]! % 2).toBe(0);
        }
      });
    }
  });
  test("give their largest magnitude back, within a rounding", () => {
    for (const row of rows) {
      const most = row.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
      const back = decodeRowOracle(format, encodeRowOracle(format, row)).reduce(
        (m, x) => Math.max(m, Math.abs(x)),
        0,
      );
      expect(Math.abs(back - most)).toBeLessThanOrEqual(Math.max(most * 2 ** -22, 2 ** -126));
    }
  });
  test("that are not finite are NaN", () => {
    for (const bad of [NaN, Infinity, -Infinity, 1e300]) {
      const encoded = encodeRowOracle(format, [1, bad, 2]);
      expect(encoded.scale).toBeNaN();
      expect(decodeRowOracle(format, encoded).every(Number.isNaN)).toBe(true);
    }
  });
});
test("known codes of E4M3", () => {
  expect([0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map((code) => codeValue("float8e4m3", code))).toEqual([
    0,
    2 ** -9,
    2 ** -6,
    1,
    448,
    -1,
  ]);
  expect(codeValue("float8e4m3", 0x7f)).toBeNaN();
});
describe("int4 groups", () => {
  test("span their numbers in fifteen steps", () => {
    const encoded = encodeGroupOracle([0, 15, 7.5, 3.4, 3.6, 8.5]);
    expect([encoded.zero, encoded.scale, ...encoded.codes]).toEqual([0, 1, 0, 15, 8, 3, 4, 8]);
    expect([...decodeGroupOracle(encodeGroupOracle([-1, -1]))]).toEqual([-1, -1]);
  });
  test("that are not finite, or span more than float32 can, are NaN", () => {
    for (const group of [
      [0, NaN],
      [0, Infinity],
      [3e38, -3e38],
    ])
      expect(decodeGroupOracle(encodeGroupOracle(group)).every(Number.isNaN)).toBe(true);
  });
});
