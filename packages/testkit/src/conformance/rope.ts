/** Rotary embedding and its gradient: kernel and composed form by the oracle. */
import { rope, ropeBackward } from "@heed/tensor";
import fc from "fast-check";
import { viewRecipe, type ViewRecipe } from "../arbitraries/views.ts";
import { roundArray } from "../dtype.ts";
import { inverseFrequencies, ropeTableOracle, type RopePairing } from "../oracle/rope.ts";
import { createRng } from "../rng.ts";
import {
  assertMeaning,
  bothForms,
  largest,
  place,
  placeInt32,
  placeView,
  results,
  wideOf,
  type Subject,
} from "./subject.ts";

/** x [B, S, H, D] (or [S, H, D]) rotated at positions below P. */
export interface RopeProblem {
  readonly B: number;
  readonly S: number;
  readonly H: number;
  readonly D: number;
  /** rotaryDim / 2. */
  readonly half: number;
  readonly P: number;
  readonly pairing: RopePairing | undefined;
  /** Which positions are given: none (0, 1, ...), one list for all sequences, or one for each. */
  readonly positions: "default" | "shared" | "perSequence";
  /** Leave out the batch axis; B is 1 then. */
  readonly isRagged: boolean;
  readonly isInverse: boolean;
  readonly seed: number;
  readonly x: ViewRecipe;
}
/** Rotations with every pairing, partial width and kind of positions. */
export function ropeProblem(): fc.Arbitrary<RopeProblem> {
  const small = fc.integer({ min: 1, max: 5 });
  return fc
    .record({ B: small, S: small, H: small, D: fc.integer({ min: 1, max: 24 }), isRagged: fc.boolean() })
    .chain(({ S, H, D, isRagged, ...rest }) => {
      const B = isRagged ? 1 : rest.B;
      return fc.record({
        B: fc.constant(B),
        S: fc.constant(S),
        H: fc.constant(H),
        D: fc.constant(D),
        isRagged: fc.constant(isRagged),
        half: fc.oneof(fc.constant(Math.floor(D / 2)), fc.nat({ max: Math.floor(D / 2) })),
        P: fc.integer({ min: 5, max: 40 }),
        pairing: fc.constantFrom("half" as const, "interleaved" as const, undefined),
        positions: fc.constantFrom("default" as const, "shared" as const, "perSequence" as const),
        isInverse: fc.boolean(),
        seed: fc.nat({ max: 0xffff }),
        x: viewRecipe([B, S, H, D]),
      });
    });
}
/** Throws a TestkitError with code "mismatch" unless the rotation agrees with the oracle on the same tables. */
export async function checkRope(subject: Subject, p: RopeProblem): Promise<void> {
  const { engine, dtype } = subject;
  const { B, S, H, D, half, P, pairing = "half" } = p;
  const rng = createRng(p.seed);
  const x = roundArray(dtype, rng.normalArray(B * S * H * D));
  const frequencies = inverseFrequencies(10000, 2 * half);
  const table = (f: (angle: number) => number): Float64Array =>
    roundArray(
      wideOf(dtype),
      Float64Array.from({ length: P * half }, (_, n) => f(Math.floor(n / half) * frequencies[n % half]!)),
    );
  const [cos, sin] = [table(Math.cos), table(Math.sin)];
  const list = Array.from({ length: B * S }, () => rng.int(0, P - 1));
  const positionAt = {
    default: (t: number) => t % S,
    shared: (t: number) => list[t % S]!,
    perSequence: (t: number) => list[t]!,
  };
  const rows = (source: Float64Array, sign: number): Float64Array =>
    Float64Array.from({ length: B * S * half }, (_, n) => {
      const token = Math.floor(n / half);
      return sign * source[positionAt[p.positions](token) * half + (n % half)]!;
    });
  const expected = ropeTableOracle(x, rows(cos, 1), rows(sin, p.isInverse ? -1 : 1), {
    H,
    D,
    pairing,
    rotaryDim: 2 * half,
  });
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const view = placeView(engine, dtype, x, p.x);
      const positions = {
        default: () => undefined,
        shared: () => placeInt32(engine, list.slice(0, S)),
        perSequence: () => placeInt32(engine, list, [B, S]),
      }[p.positions]();
      const rotate = p.isInverse ? ropeBackward : rope;
      const of = wideOf(dtype);
      const options = { positions, pairing: p.pairing, fused: mode };
      const y = rotate(
        p.isRagged ? view.select(0, 0) : view,
        place(engine, of, cos, [P, half]),
        place(engine, of, sin, [P, half]),
        options,
      );
      return { y };
    }),
  );
  assertMeaning({
    fused: fused.y,
    composed: composed.y,
    oracle: expected,
    dtype,
    shape: [B, S, H, D],
    termScale: largest(x),
  });
}
