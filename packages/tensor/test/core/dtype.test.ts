import { accumulatorOf, type DType, DTYPES, fromBFloat16, isFloat, toBFloat16 } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);
function fromBits(u: number): number {
  bits[0] = u;
  return float[0]!;
}

test("each of the 65536 bfloat16 values goes to a number and back", () => {
  for (let u = 0; u < 0x10000; u++) {
    const x = fromBFloat16(u);
    if (Number.isNaN(x)) expect(Number.isNaN(fromBFloat16(toBFloat16(x)))).toBe(true);
    else if (toBFloat16(x) !== u) throw new Error(`bits ${u} came back as ${toBFloat16(x)}`);
  }
});
test("bfloat16 rounds to the nearest value, ties to the even one", () => {
  const low16 = fc.oneof(fc.nat({ max: 0xffff }), fc.constantFrom(0, 0x7fff, 0x8000, 0x8001, 0xffff));
  fc.assert(
    fc.property(fc.nat({ max: 0x7f7f }), low16, fc.boolean(), (high, low, negative) => {
      const x = fromBits(((high << 16) | low) >>> 0) * (negative ? -1 : 1);
      const up = low > 0x8000 || (low === 0x8000 && (high & 1) === 1);
      expect(toBFloat16(x)).toBe((high + (up ? 1 : 0)) | (negative ? 0x8000 : 0));
    }),
  );
});
test("a double beside a tie is rounded once, to its own side", () => {
  for (const sign of [1, -1]) {
    for (const n of [0, 1, 2, 3]) {
      const tie = 1 + (2 * n + 1) * 2 ** -8; // between 1 + 2n / 256 and 1 + (2n + 2) / 256
      expect(fromBFloat16(toBFloat16(sign * (tie + 2 ** -45)))).toBe(sign * (tie + 2 ** -8));
      expect(fromBFloat16(toBFloat16(sign * (tie - 2 ** -45)))).toBe(sign * (tie - 2 ** -8));
    }
  }
});
test("a number beyond the largest bfloat16 becomes an infinity", () => {
  expect(fromBFloat16(toBFloat16(3.4e38))).toBe(Infinity);
  expect(fromBFloat16(toBFloat16(-1e300))).toBe(-Infinity);
  expect(fromBFloat16(toBFloat16(Infinity))).toBe(Infinity);
});
test("every NaN stays NaN, whatever its payload", () => {
  for (const payload of [0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001]) {
    expect(fromBFloat16(toBFloat16(fromBits(payload)))).toBeNaN();
  }
});
test("negative zero and subnormal numbers keep their bits", () => {
  expect(toBFloat16(-0)).toBe(0x8000);
  expect(fromBFloat16(toBFloat16(fromBFloat16(1)))).toBe(fromBFloat16(1));
});
test("the table agrees with the typed arrays", () => {
  for (const dtype of Object.keys(DTYPES) as DType[]) {
    expect(new DTYPES[dtype].array(1).BYTES_PER_ELEMENT).toBe(DTYPES[dtype].bytes);
    expect(isFloat(dtype)).toBe(dtype.includes("float"));
  }
});
test("16-bit floats accumulate in float32", () => {
  expect(accumulatorOf("float16")).toBe("float32");
  expect(accumulatorOf("bfloat16")).toBe("float32");
  expect(accumulatorOf("float32")).toBe("float32");
  expect(accumulatorOf("float64")).toBe("float64");
});
