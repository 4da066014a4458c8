/** Random rotary scalings of every kind, and options around them. */
import fc, { type Arbitrary } from "fast-check";
import type { RopeScaling } from "../../src/index.ts";

const factors = fc.oneof(fc.constantFrom(1, 2, 8), fc.double({ min: 0.5, max: 64, noNaN: true }));
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined });
/** Original contexts; with small ones, short sequences already reach beyond. */
const contexts = fc.oneof(fc.integer({ min: 2, max: 20 }), fc.integer({ min: 64, max: 1 << 20 }));

/** A scaling of any kind for a rotation of `half` pairs; those that change the base need two pairs. */
export function scalings(half: number): Arbitrary<RopeScaling> {
  const list = fc.array(fc.double({ min: 0.5, max: 64, noNaN: true }), { minLength: half, maxLength: half });
  const length = maybe(fc.integer({ min: 1, max: 64 }));
  const kinds: Arbitrary<RopeScaling>[] = [
    fc.record({ type: fc.constant("none" as const) }),
    fc.record({ type: fc.constant("linear" as const), factor: factors }),
    fc
      .record({
        type: fc.constant("yarn" as const),
        factor: factors,
        originalMaxPositions: contexts,
        betas: fc.constantFrom([undefined, undefined], [8, undefined], [undefined, 2], [4, 1.5]),
        truncate: maybe(fc.boolean()),
        mscale: maybe(fc.constantFrom(0, 0.8, 1)),
        mscaleAllDim: maybe(fc.constantFrom(0, 0.8, 1)),
        attentionFactor: maybe(fc.constantFrom(1, 1.5)),
      })
      .map(({ betas: [betaFast, betaSlow], ...rest }) => ({ ...rest, betaFast, betaSlow })),
    fc.record({
      type: fc.constant("llama3" as const),
      factor: factors,
      lowFreqFactor: fc.constantFrom(0.5, 1),
      highFreqFactor: fc.constantFrom(2, 4),
      originalMaxPositions: contexts,
    }),
    fc.record({
      type: fc.constant("longrope" as const),
      shortFactor: list,
      longFactor: list,
      originalMaxPositions: contexts,
      factor: factors,
      attentionFactor: maybe(fc.constantFrom(1, 1.5)),
      length,
    }),
  ];
  if (half > 1) {
    kinds.push(
      fc.record({ type: fc.constant("ntk" as const), factor: factors }),
      fc.record({
        type: fc.constant("dynamic" as const),
        factor: factors,
        originalMaxPositions: contexts,
        length,
      }),
    );
  }
  return fc.oneof(...kinds);
}
/** Rotations of up to four pairs, with what a scaling needs to know of them. */
export function rotations(): Arbitrary<{
  readonly half: number;
  readonly base: number;
  readonly scaling: RopeScaling;
}> {
  return fc
    .record({ half: fc.integer({ min: 1, max: 4 }), base: fc.constantFrom(100, 10000, 1e6) })
    .chain(({ half, base }) => scalings(half).map((scaling) => ({ half, base, scaling })));
}
