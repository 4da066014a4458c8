import type { DType, Engine } from "@heed/tensor";
import { describe, test } from "bun:test";
import fc from "fast-check";
import {
  ALL,
  type Element,
  elements,
  elementsOf,
  expectElements,
  type Layout,
  layouts,
  NUMBERS,
  place,
  PRECISION,
  rounded,
  shapes,
} from "./strided.ts";

interface Problem {
  readonly x: Element[];
  readonly xAt: Layout;
  readonly y: Element[];
  readonly yAt: Layout;
  readonly rows: number[];
  readonly rowsAt: Layout;
  readonly wide: boolean;
}
/** x [R, ...], y [n, ...] and n rows of x; `readsX`: x is the operand, else y is. */
function problems(dtype: DType, readsX: boolean): fc.Arbitrary<Problem> {
  return fc
    .tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 9 }), shapes(0, 2))
    .chain(([R, n, rest]) =>
      fc.record({
        x: elementsOf(dtype, [R, ...rest], readsX),
        xAt: layouts([R, ...rest], readsX),
        y: elementsOf(dtype, [n, ...rest], false),
        yAt: layouts([n, ...rest], !readsX),
        rows: fc.array(fc.nat({ max: R - 1 }), { minLength: n, maxLength: n }),
        rowsAt: layouts([n], true),
        wide: fc.boolean(),
      }),
    );
}
function placeRows(engine: Engine, p: Problem) {
  return place(engine, p.wide ? "int64" : "int32", p.rowsAt, p.wide ? p.rows.map(BigInt) : p.rows);
}
export function gatherSuite(engine: Engine): void {
  describe("gather and scatterAdd", () => {
    test.each([...ALL])("gather rows of %s", async (dtype) => {
      await fc.assert(
        fc.asyncProperty(problems(dtype, true), async (p) => {
          using x = place(engine, dtype, p.xAt, p.x);
          using rows = placeRows(engine, p);
          using out = place(engine, dtype, p.yAt);
          engine.gather(x, rows, out);
          const from = await elements(x);
          const width = from.length / p.xAt.shape[0]!;
          await expectElements(
            out,
            (await elements(rows)).flatMap((r) => from.slice(Number(r) * width, (Number(r) + 1) * width)),
          );
        }),
        { numRuns: 60 },
      );
    });
    test.each([...NUMBERS])("scatterAdd rows of %s, repeated ones too", async (dtype) => {
      await fc.assert(
        fc.asyncProperty(problems(dtype, false), async (p) => {
          using out = place(engine, dtype, p.xAt, p.x);
          using rows = placeRows(engine, p);
          using y = place(engine, dtype, p.yAt, p.y);
          engine.scatterAdd(y, rows, out);
          const expected = p.x.slice();
          const size = p.x.map((v) => Math.abs(Number(v)));
          const add = await elements(y);
          const width = expected.length / p.xAt.shape[0]!;
          (await elements(rows)).forEach((r, i) => {
            for (let j = 0; j < width; j++) {
              const to = Number(r) * width + j;
              const term = add[i * width + j]!;
              expected[to] =
                typeof term === "bigint"
                  ? (expected[to] as bigint) + term
                  : (expected[to] as number) + (term as number);
              size[to]! += Math.abs(Number(term));
            }
          });
          // At most 9 additions, each of which may round.
          const { ulp, tiny } = PRECISION[dtype];
          await expectElements(
            out,
            expected.map((v) => rounded(dtype, v)),
            (i) => 5 * ulp * size[i]! + tiny,
          );
        }),
        { numRuns: 60 },
      );
    });
  });
}
