import { broadcastShapes, contiguousStrides, ShapeError, tensor, type Tensor, toFloat64 } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import "../engines.ts";

/** A tensor as a function of its index: what every view must agree with. */
interface Model {
  readonly shape: readonly number[];
  at(index: readonly number[]): number;
}
function indicesOf(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>(
    (all, n) => all.flatMap((index) => Array.from({ length: n }, (_, i) => [...index, i])),
    [[]],
  );
}
function flatten(m: Model): number[] {
  return indicesOf(m.shape).map((index) => m.at(index));
}
/** A model read row-major under another shape of the same size. */
function reshaped(m: Model, shape: readonly number[]): Model {
  const flat = flatten(m);
  const strides = contiguousStrides(shape);
  return { shape, at: (index) => flat[index.reduce((sum, i, axis) => sum + i * strides[axis]!, 0)]! };
}
/** One view step: what it does to a tensor and to the model; undefined where it does not apply. */
type Step = (t: Tensor, m: Model, pick: readonly number[]) => readonly [Tensor, Model] | undefined;
const steps: Readonly<Record<string, Step>> = {
  slice: (t, m, [p, a, b]) => {
    if (t.rank === 0) return undefined;
    const axis = p! % t.rank;
    const n = t.shape[axis]!;
    const start = a! % (n + 1);
    const end = start + (b! % (n - start + 1));
    const shape = m.shape.toSpliced(axis, 1, end - start);
    const view = t.slice(axis - t.rank, start === n ? n : start - n, end === n ? undefined : end);
    return [view, { shape, at: (i) => m.at(i.toSpliced(axis, 1, i[axis]! + start)) }];
  },
  select: (t, m, [p, a]) => {
    const axis = p! % Math.max(1, t.rank);
    if (t.rank === 0 || t.shape[axis] === 0) return undefined;
    const index = a! % t.shape[axis]!;
    return [
      t.select(axis, index - t.shape[axis]!),
      { shape: m.shape.toSpliced(axis, 1), at: (i) => m.at(i.toSpliced(axis, 0, index)) },
    ];
  },
  transpose: (t, m, [p, a]) => {
    if (t.rank < 2) return undefined;
    const [x, y] = [p! % t.rank, a! % t.rank];
    const swap = <T>(list: readonly T[]): T[] =>
      list.map((v, i) => (i === x ? list[y]! : i === y ? list[x]! : v));
    return [t.transpose(x, y - t.rank), { shape: swap(m.shape), at: (i) => m.at(swap(i)) }];
  },
  permute: (t, m, [p]) => {
    const order = t.shape.map((_, i) => (i + p!) % Math.max(1, t.rank));
    return [
      t.permute(...order),
      { shape: order.map((a) => m.shape[a]!), at: (i) => m.at(m.shape.map((_, a) => i[order.indexOf(a)]!)) },
    ];
  },
  unsqueeze: (t, m, [p]) => {
    if (t.rank >= 6) return undefined;
    const axis = p! % (t.rank + 1);
    return [
      t.unsqueeze(axis - t.rank - 1),
      { shape: m.shape.toSpliced(axis, 0, 1), at: (i) => m.at(i.toSpliced(axis, 1)) },
    ];
  },
  squeeze: (t, m) => {
    const axis = t.shape.indexOf(1);
    if (axis < 0) return undefined;
    return [t.squeeze(axis), { shape: m.shape.toSpliced(axis, 1), at: (i) => m.at(i.toSpliced(axis, 0, 0)) }];
  },
  broadcastTo: (t, m, [p, a]) => {
    if (t.rank >= 5 || t.size > 300) return undefined;
    const shape = [(p! % 2) + 1, ...t.shape.map((n) => (n === 1 ? (a! % 3) + 1 : n))];
    return [
      t.broadcastTo(shape),
      { shape, at: (i) => m.at(i.slice(1).map((x, axis) => (m.shape[axis] === 1 ? 0 : x))) },
    ];
  },
  reshape: (t, m, [p, a]) => {
    const divisors = Array.from({ length: t.size }, (_, i) => i + 1).filter((d) => t.size % d === 0);
    const first = divisors[p! % Math.max(1, divisors.length)] ?? 3;
    const rest = divisors.filter((d) => (t.size / first) % d === 0);
    const second = rest[a! % Math.max(1, rest.length)] ?? 1;
    const shape = t.size === 0 ? [0, first] : [first, t.size / first / second, second];
    let view: Tensor;
    try {
      view = t.reshape(t.size === 0 ? shape : [first, -1, second]);
    } catch (error) {
      // A view is refused only where one stride cannot describe it; a contiguous tensor always has one.
      if (!(error instanceof ShapeError) || t.isContiguous) throw error;
      expect(isView(t, shape)).toBe(false);
      view = t.contiguous().reshape(shape);
    }
    return [view, reshaped(m, shape)];
  },
  contiguous: (t, m) => {
    const dense = t.contiguous();
    expect(dense.isContiguous).toBe(true);
    return [dense, m];
  },
};
/** Whether strides exist that read t's memory as `shape`, by brute force: neighbours along each axis must be equally far apart. */
function isView(t: Tensor, shape: readonly number[]): boolean {
  const place = (index: readonly number[]): number =>
    index.reduce((sum, i, axis) => sum + i * t.strides[axis]!, 0);
  const places = reshaped({ shape: t.shape, at: place }, shape);
  return shape.every((n, axis) => {
    const gaps = indicesOf(shape.toSpliced(axis, 1, Math.max(0, n - 1))).map(
      (index) => places.at(index.toSpliced(axis, 1, index[axis]! + 1)) - places.at(index),
    );
    return new Set(gaps).size <= 1;
  });
}

test("any chain of views reads the elements that brute force finds", () => {
  const shape = fc.array(fc.nat({ max: 4 }), { maxLength: 4 });
  const chain = fc.array(
    fc.record({
      step: fc.constantFrom(...Object.keys(steps)),
      pick: fc.array(fc.nat({ max: 30 }), { minLength: 3, maxLength: 3 }),
    }),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(shape, chain, (base, list) => {
      const size = base.reduce((a, n) => a * n, 1);
      const values = Float64Array.from({ length: size }, (_, i) => i);
      let t: Tensor = tensor(values, base, { engine: "portable" });
      let m = reshaped({ shape: [size], at: ([i]) => values[i!]! }, base);
      for (const { step, pick } of list) [t, m] = steps[step]!(t, m, pick) ?? [t, m];
      expect(t.shape).toEqual([...m.shape]);
      expect([...toFloat64(t)]).toEqual(flatten(m));
    }),
    { numRuns: 600 },
  );
});
test("reshape finds strides exactly where brute force does, for every view of rank 3 and every factorisation", () => {
  const base = tensor(
    Float64Array.from({ length: 144 }, (_, i) => i),
    [3, 6, 8],
    { engine: "portable" },
  );
  const views = [
    base,
    base.transpose(),
    base.transpose(0, 1),
    base.slice(1, 0, 4),
    base.slice(2, 2, 6),
    base.slice(1, 1, 5).slice(2, 0, 4),
    base.slice(2, 0, 4).transpose(0, 1),
    base.select(1, 2),
    base.select(2, 1).unsqueeze(0).broadcastTo([4, 3, 6]),
  ];
  for (const t of views) {
    const flat = [...toFloat64(t)];
    for (const [a, b, c] of factorisations(t.size)) {
      const target = [a, b, c];
      const possible = isView(t, target);
      if (!possible) expect(() => t.reshape(target)).toThrow(ShapeError);
      else expect([...toFloat64(t.reshape(target))]).toEqual(flat);
    }
  }
});
function factorisations(n: number): [number, number, number][] {
  const divisors = Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
  return divisors.flatMap((a) =>
    divisors.filter((b) => (n / a) % b === 0).map((b): [number, number, number] => [a, b, n / a / b]),
  );
}
test("broadcasting follows NumPy's rule for any two shapes", () => {
  const shape = fc.array(fc.constantFrom(0, 1, 2, 3), { maxLength: 4 });
  fc.assert(
    fc.property(shape, shape, (a, b) => {
      const rank = Math.max(a.length, b.length);
      const pad = (s: readonly number[]): number[] => [...Array<number>(rank - s.length).fill(1), ...s];
      const [x, y] = [pad(a), pad(b)];
      const fits = x.every((n, i) => n === y[i] || n === 1 || y[i] === 1);
      if (!fits) expect(() => broadcastShapes(a, b, "test")).toThrow(ShapeError);
      else expect(broadcastShapes(a, b, "test")).toEqual(x.map((n, i) => (n === 1 ? y[i]! : n)));
    }),
  );
});
