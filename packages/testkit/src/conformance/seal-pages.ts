/** Encoding full pages in 4 bits: kernel and composed form by the oracle. */
import { type QuantisedGroups, scope, sealPages, tensor } from "@heed/tensor";
import fc from "fast-check";
import { roundArray } from "../dtype.ts";
import { TestkitError } from "../errors.ts";
import { encodeGroupOracle, GROUP } from "../oracle/quantised.ts";
import { createRng } from "../rng.ts";
import { layoutOf, putNibble, type QuantisedShape } from "./quantised-pages.ts";
import { place, placeInt32, readAll, type Subject } from "./subject.ts";

/** Residual pages and the pages that they are encoded into. */
export interface SealProblem {
  readonly P: number;
  readonly R: number;
  readonly Hkv: number;
  readonly pageSize: number;
  readonly D: number;
  readonly Dv: number;
  readonly count: number;
  readonly seed: number;
}
/** Up to three pages, of sizes below a group and of several groups. */
export function sealProblem(): fc.Arbitrary<SealProblem> {
  const few = fc.integer({ min: 1, max: 3 });
  return fc.record({
    P: few,
    R: few,
    Hkv: fc.integer({ min: 1, max: 2 }),
    pageSize: fc.constantFrom(1, 5, 16, 32, 64),
    D: fc.integer({ min: 1, max: 70 }),
    Dv: fc.integer({ min: 1, max: 70 }),
    count: fc.integer({ min: 0, max: 3 }),
    seed: fc.nat({ max: 0xffff }),
  });
}
/** What a page must hold, encoded group by group. */
function encodePage(page: Float64Array, shape: QuantisedShape) {
  const { Hkv, pageSize, width } = shape;
  const layout = layoutOf(shape);
  const bytes = (GROUP / 2) * Math.ceil(width / GROUP);
  const codes = new Uint8Array(Hkv * pageSize * bytes);
  const scales: number[] = [];
  const zeros: number[] = [];
  for (let h = 0; h < Hkv; h++)
    for (let group = 0; group < layout.groups; group++)
      for (let other = 0; other < layout.others; other++) {
        const members = layout.members(group, other);
        const encoded = encodeGroupOracle(members.map(([t, d]) => page[(h * pageSize + t) * width + d]!));
        scales.push(encoded.scale);
        zeros.push(encoded.zero);
        members.forEach(([t, d], i) => {
          const row = (h * pageSize + t) * bytes;
          putNibble(codes.subarray(row, row + bytes), d, encoded.codes[i]!);
        });
      }
  return { codes, scales: Float32Array.from(scales), zeros: Float32Array.from(zeros) };
}
/** Throws a TestkitError with code "mismatch" unless exactly the named pages hold the oracle's codes, scales and zeros. */
export async function checkSealPages(subject: Subject, p: SealProblem): Promise<void> {
  const { engine, dtype } = subject;
  const { P, R, Hkv, pageSize } = p;
  const from = createRng(p.seed)
    .permutation(R)
    .slice(0, Math.min(p.count, P, R));
  const to = createRng(p.seed + 1)
    .permutation(P)
    .slice(0, from.length);
  const made = (["keys", "values"] as const).map((role, part) => {
    const shape = { P, Hkv, pageSize, width: part === 0 ? p.D : p.Dv, role };
    const layout = layoutOf(shape);
    const size = Hkv * pageSize * shape.width;
    const rng = createRng(p.seed + 2 + part);
    const sizes = [1, 0, NaN, Infinity, 2 ** -149, 3e38, -3e38];
    const given = roundArray(
      dtype,
      rng
        .normalArray(R * size)
        .map((x) => (rng.int(0, 99) === 0 ? x * sizes[rng.int(0, sizes.length - 1)]! : x)),
    );
    const groups = Hkv * layout.groups * layout.others;
    const codes = new Uint8Array(P * Hkv * pageSize * (GROUP / 2) * Math.ceil(shape.width / GROUP)).fill(
      0x5a,
    );
    const expected = {
      codes: codes.slice(),
      scales: new Float32Array(P * groups).fill(-1),
      zeros: new Float32Array(P * groups).fill(-2),
    };
    const before = {
      codes,
      scales: expected.scales.slice(),
      zeros: expected.zeros.slice(),
    };
    from.forEach((source, i) => {
      const page = encodePage(given.subarray(source * size, (source + 1) * size), shape);
      for (const name of ["codes", "scales", "zeros"] as const)
        expected[name].set(page[name], to[i]! * page[name].length);
    });
    return { shape, layout, given, before, expected };
  });
  for (const mode of ["off", subject.fused ?? "auto"] as const) {
    const written = scope(() => {
      const pages = made.map(({ shape, layout, given, before }): QuantisedGroups => {
        const groups = [P, Hkv, layout.groups, layout.others];
        return {
          format: "int4",
          codes: tensor(before.codes, [P, Hkv, pageSize, before.codes.length / (P * Hkv * pageSize)], {
            engine,
            dtype: "uint8",
          }),
          scales: tensor(before.scales, groups, { engine }),
          zeros: tensor(before.zeros, groups, { engine }),
          residual: place(engine, dtype, given, [R, Hkv, pageSize, shape.width]),
        };
      });
      sealPages(pages[0]!, pages[1]!, placeInt32(engine, from), placeInt32(engine, to), { fused: mode });
      return pages.map(({ codes, scales, zeros }) => ({ codes, scales, zeros }));
    });
    const after = await Promise.all(written.map(readAll));
    made.forEach(({ expected, shape }, part) => {
      for (const name of ["codes", "scales", "zeros"] as const)
        after[part]![name].forEach((got, i) => {
          const want = expected[name][i]!;
          if (got === want || (Number.isNaN(got) && Number.isNaN(want))) return; // of 0 and -0 either may be the smallest
          throw new TestkitError(
            "mismatch",
            `sealPages (${mode}) of ${shape.role}: ${name}[${i}] is ${got}, expected ${want}`,
            { at: i },
          );
        });
    });
  }
}
