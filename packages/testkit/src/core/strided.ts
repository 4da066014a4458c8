/** Tensors that lie in memory in odd ways: permuted, with gaps, backwards or broadcast, in memory that is poisoned elsewhere. */
import {
  allocate,
  type DType,
  DTYPES,
  type DTypeArrays,
  type Engine,
  fromBFloat16,
  isFloat,
  sizeOf,
  Tensor,
  toBFloat16,
} from "@heed/tensor";
import { expect } from "bun:test";
import fc from "fast-check";

/** An element as tests compute with it: int64 is a bigint. */
export type Element = number | bigint;

/** Where the elements of a tensor lie inside a base of `length` elements. */
export interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly offset: number;
  readonly length: number;
}
/** The layout of `shape` whose axes, from the innermost of `order` on, step by `step` times what lies inside; step 0 broadcasts. */
function layoutOf(
  shape: readonly number[],
  order: readonly number[],
  steps: readonly number[],
  margin: number,
): Layout {
  const strides = shape.map(() => 0);
  let span = 1;
  let offset = margin;
  for (const axis of order) {
    const stride = span * steps[axis]!;
    const reach = stride * (shape[axis]! - 1);
    strides[axis] = stride;
    if (reach < 0) offset -= reach;
    if (stride !== 0) span += Math.abs(reach);
  }
  return { shape, strides, offset, length: span + 2 * margin };
}
/** Layouts of a shape; contiguous when shrunk. `broadcast`: axes may have stride 0, as only operands may. */
export function layouts(shape: readonly number[], broadcast: boolean): fc.Arbitrary<Layout> {
  const axes = shape.map((_, i) => i);
  const inner = axes.toReversed();
  const step = fc.constantFrom(1, 1, 1, 2, -1, -3, ...(broadcast ? [0] : []));
  return fc
    .tuple(
      fc.oneof(
        { arbitrary: fc.constant(inner), weight: 2 },
        fc.shuffledSubarray(inner, { minLength: shape.length }),
      ),
      fc.array(step, { minLength: shape.length, maxLength: shape.length }),
      fc.nat({ max: 3 }),
    )
    .map(([order, steps, margin]) => layoutOf(shape, order, steps, margin));
}
/** Shapes of a rank with lengths from 1; long ones now and then, so that vector loops and their tails both run. */
export function shapes(minRank: number, maxRank: number): fc.Arbitrary<number[]> {
  const length = fc.oneof(
    { arbitrary: fc.integer({ min: 1, max: 4 }), weight: 5 },
    { arbitrary: fc.integer({ min: 1, max: 70 }), weight: 1 },
  );
  return fc.array(length, { minLength: minRank, maxLength: maxRank }).filter((s) => sizeOf(s) <= 3000);
}
/** Index into the base of every element, row-major. */
export function positions({ shape, strides, offset }: Layout): number[] {
  let out = [offset];
  shape.forEach((n, axis) => {
    out = out.flatMap((base) => Array.from({ length: n }, (_, i) => base + i * strides[axis]!));
  });
  return out;
}
const POISON: Readonly<Record<DType, Element>> = {
  float64: NaN,
  float32: NaN,
  float16: NaN,
  bfloat16: 0x7fc0,
  int32: 0x7fffffff,
  int64: 0x7fffffffffffffffn,
  uint8: 0xff,
  bool: 0xff,
};
/** `value` as the typed array of a dtype holds it. */
function encode(dtype: DType, value: Element): Element {
  return dtype === "bfloat16" ? toBFloat16(value as number) : value;
}
/** What an element becomes when a tensor of `dtype` holds it. */
export function rounded(dtype: DType, value: Element): Element {
  const one = new DTYPES[dtype].array(1) as Float32Array;
  one[0] = encode(dtype, value) as number;
  return dtype === "bfloat16" ? fromBFloat16(one[0]) : one[0];
}
/**
 * A tensor at a layout with the given elements, row-major; all else is poison. Of elements at one place the last counts: read the
 * operand back with {@link elements}.
 */
export function place(engine: Engine, dtype: DType, layout: Layout, values?: readonly Element[]): Tensor {
  const host = new DTYPES[dtype].array(layout.length) as Float32Array; // any of them, written with what it holds
  host.fill(POISON[dtype] as number);
  const at = positions(layout);
  values?.forEach((value, i) => (host[at[i]!] = encode(dtype, value) as number));
  using base = allocate(engine, dtype, [layout.length]);
  engine.upload(host as unknown as DTypeArrays[DType], base);
  base.storage.retain();
  return new Tensor(engine, base.storage, dtype, layout.shape, layout.strides, layout.offset);
}
/** All of the memory under a tensor, which the host may not see by itself. */
async function memory(t: Tensor): Promise<Float32Array> {
  t.storage.retain();
  const length = t.storage.byteLength / DTYPES[t.dtype].bytes;
  using base = new Tensor(t.engine, t.storage, t.dtype, [length], [1], 0);
  return (await t.engine.read(base)) as Float32Array;
}
function elementsIn(all: Float32Array, { shape, strides, offset, dtype }: Tensor): Element[] {
  const at = positions({ shape, strides, offset, length: all.length });
  return at.map((i) => (dtype === "bfloat16" ? fromBFloat16(all[i]!) : all[i]!));
}
/** The elements of a tensor, row-major, decoded. */
export async function elements(t: Tensor): Promise<Element[]> {
  return elementsIn(await memory(t), t);
}
/** Fails when an element outside the view is no longer poison. */
function expectUntouched(all: Float32Array, t: Tensor): void {
  const inside = new Set(
    positions({ shape: t.shape, strides: t.strides, offset: t.offset, length: all.length }),
  );
  for (let i = 0; i < all.length; i++) {
    if (!inside.has(i) && !Object.is(all[i], POISON[t.dtype])) {
      expect(`element ${i} of the memory around the output became ${all[i]}`).toBe("poison");
    }
  }
}
/** Elements of a dtype; floats rounded to it, with zeros, infinities and NaN among them when `special`. */
export function elementOf(dtype: DType, special: boolean): fc.Arbitrary<Element> {
  if (dtype === "bool") return fc.nat({ max: 1 });
  if (dtype === "uint8") return fc.nat({ max: 255 });
  if (dtype === "int32") return fc.oneof(fc.integer({ min: -9, max: 9 }), fc.integer());
  if (dtype === "int64") {
    return fc.oneof(fc.bigInt({ min: -9n, max: 9n }), fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }));
  }
  const ordinary = fc.integer({ min: -8000, max: 8000 }).map((x) => x / 997);
  const rare = fc.constantFrom(0, -0, 1, -1, Infinity, -Infinity, NaN, 3e4, -6e-5);
  const any = special
    ? fc.oneof({ arbitrary: ordinary, weight: 6 }, { arbitrary: rare, weight: 1 })
    : ordinary;
  return any.map((x) => rounded(dtype, x));
}
/** As many elements of a dtype as a shape has. */
export function elementsOf(dtype: DType, shape: readonly number[], special = true): fc.Arbitrary<Element[]> {
  const n = sizeOf(shape);
  return fc.array(elementOf(dtype, special), { minLength: n, maxLength: n });
}
/** Distance of neighbouring numbers near 1, and the smallest number below which a result may lose bits. */
export const PRECISION: Readonly<Record<DType, { readonly ulp: number; readonly tiny: number }>> = {
  float64: { ulp: 2 ** -52, tiny: 1e-300 },
  float32: { ulp: 2 ** -23, tiny: 1e-37 },
  float16: { ulp: 2 ** -10, tiny: 2 ** -24 },
  bfloat16: { ulp: 2 ** -7, tiny: 1e-37 },
  int32: { ulp: 0, tiny: 0 },
  int64: { ulp: 0, tiny: 0 },
  uint8: { ulp: 0, tiny: 0 },
  bool: { ulp: 0, tiny: 0 },
};
/** Fails unless each element equals what is expected, or differs by at most its tolerance. NaN equals NaN, 0 equals -0. */
export async function expectElements(
  actual: Tensor,
  expected: readonly Element[],
  tolerance?: (i: number) => number,
): Promise<void> {
  const all = await memory(actual);
  elementsIn(all, actual).forEach((a, i) => {
    const e = expected[i]!;
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) return;
    const off = Math.abs(Number(a) - Number(e));
    if (!(off <= (tolerance?.(i) ?? 0))) {
      expect(`element ${i} of ${actual}: got ${a}, off by ${off}`).toBe(`${e} within ${tolerance?.(i) ?? 0}`);
    }
  });
  expectUntouched(all, actual);
}
export const FLOATS: readonly DType[] = (Object.keys(DTYPES) as DType[]).filter(isFloat);
export const NUMBERS: readonly DType[] = [...FLOATS, "int32", "int64"];
export const ALL: readonly DType[] = Object.keys(DTYPES) as DType[];
