import "@heed/engine-cpu";
import { ArgumentError, ShapeError, tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { documentIds, documentPositions } from "../src/index.ts";

describe("documents of packed sequences", () => {
  test("come from cumulative lengths, with what is left over as a document of its own", () => {
    using ids = documentIds([[0, 2, 5], [0], [0, 0, 4], [0, 5]], 5);
    expect(ids.shape).toEqual([4, 5]);
    expect([...ids.data]).toEqual([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 0, 0, 0, 0, 0]);
  });
  test("start their positions at 0, in every sequence", () => {
    using ids = tensor(Int32Array.from([4, 4, 7, 7, 7, 7, 4, 4, 4, 7]), [2, 5], { dtype: "int32" });
    using positions = documentPositions(ids);
    expect([...positions.data]).toEqual([0, 1, 0, 1, 2, 0, 0, 1, 2, 0]);
  });
  test("are refused where lengths do not rise from 0 to at most S", () => {
    for (const ends of [[], [1, 2], [0, 3, 2], [0, 6], [0, 1.5], [0, NaN], [-1, 2]])
      expect(() => documentIds([[0], ends], 5)).toThrow(ArgumentError);
    expect(() => documentIds([[0, 6]], 5)).toThrow(
      "boundaries[0] must rise from 0 to at most 5 in whole numbers; got 6 at 1",
    );
    using flat = tensor(Int32Array.from([0, 1]), [2], { dtype: "int32" });
    expect(() => documentPositions(flat)).toThrow(ShapeError);
  });
});
