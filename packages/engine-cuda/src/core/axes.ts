/** The axes that operands share: strides has one array for each operand. Strides count elements. */
export interface Axes {
  readonly shape: readonly number[];
  readonly strides: readonly (readonly number[])[];
}
interface Axis {
  length: number;
  readonly steps: readonly number[];
}

/** Positive when axis a belongs inside of axis b: by the first operand's stride, then by the next one's. */
function order(a: Axis, b: Axis): number {
  for (let k = 0; k < a.steps.length; k++) {
    const difference = Math.abs(b.steps[k]!) - Math.abs(a.steps[k]!);
    if (difference !== 0) return difference;
  }
  return 0;
}
/** Whether outer and inner lie behind one another in every operand. */
function isOne(outer: Axis, inner: Axis): boolean {
  return outer.steps.every((step, k) => step === inner.steps[k]! * inner.length);
}
/**
 * The same elements with as few axes as possible, at least one: axes of length 1 are dropped, the first operand's smallest stride comes
 * last, and neighbours that lie behind one another in every operand are merged. Elementwise work alone may have its axes in any order.
 */
export function collapse({ shape, strides }: Axes): Axes {
  const axes: Axis[] = [];
  shape.forEach((length, i) => {
    if (length !== 1) axes.push({ length, steps: strides.map((s) => s[i]!) });
  });
  axes.sort(order);
  for (let i = axes.length - 2; i >= 0; i--) {
    const inner = axes[i + 1]!;
    if (!isOne(axes[i]!, inner)) continue;
    inner.length *= axes[i]!.length;
    axes.splice(i, 1);
  }
  if (axes.length === 0) axes.push({ length: 1, steps: strides.map(() => 1) });
  return {
    shape: axes.map((a) => a.length),
    strides: strides.map((_, k) => axes.map((a) => a.steps[k]!)),
  };
}
/** Axes `keep` of the operands, in that order. */
export function pick({ shape, strides }: Axes, keep: readonly number[]): Axes {
  return { shape: keep.map((i) => shape[i]!), strides: strides.map((s) => keep.map((i) => s[i]!)) };
}
/** The axes of one after those of the other. */
export function join(outer: Axes, inner: Axes): Axes {
  return {
    shape: [...outer.shape, ...inner.shape],
    strides: outer.strides.map((s, k) => [...s, ...inner.strides[k]!]),
  };
}
/** The product of the lengths. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((n, length) => n * length, 1);
}
