import { ones, ShapeError, type Tensor, zeros } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import "../engines.ts";

const make = (): Tensor => zeros([2, 3, 4], { engine: "portable" });
const cases: Readonly<Record<string, (t: Tensor) => unknown>> = {
  "slice of an axis that is not there": (t) => t.slice(3, 0),
  "slice of a fractional axis": (t) => t.slice(0.5, 0),
  "slice past the end": (t) => t.slice(1, 0, 4),
  "slice before the start": (t) => t.slice(1, -4),
  "slice that ends before it starts": (t) => t.slice(1, 2, 1),
  "slice at a fraction": (t) => t.slice(1, 0.5),
  "slice to NaN": (t) => t.slice(1, 0, NaN),
  "select past the end": (t) => t.select(0, 2),
  "select before the start": (t) => t.select(0, -3),
  "select at NaN": (t) => t.select(0, NaN),
  "permute with an axis twice": (t) => t.permute(0, 0, 1),
  "permute with an axis missing": (t) => t.permute(0, 1),
  "transpose of an axis that is not there": (t) => t.transpose(0, 3),
  "reshape to another size": (t) => t.reshape([5, 5]),
  "reshape with two unknown lengths": (t) => t.reshape([-1, -1, 2]),
  "reshape with an unknown length that is not whole": (t) => t.reshape([-1, 5]),
  "reshape to a fractional length": (t) => t.reshape([2.5, -1]),
  "reshape to a negative length": (t) => t.reshape([-2, -12]),
  "reshape to NaN": (t) => t.reshape([NaN]),
  "reshape of a transposed tensor": (t) => t.transpose().reshape([24]),
  "reshape to more than eight axes": (t) => t.reshape([2, 3, 4, 1, 1, 1, 1, 1, 1]),
  "broadcast to fewer axes": (t) => t.broadcastTo([3, 4]),
  "broadcast of a length that is not 1": (t) => t.broadcastTo([2, 6, 4]),
  "broadcast to more than eight axes": (t) => t.broadcastTo([1, 1, 1, 1, 1, 1, 2, 3, 4]),
  "squeeze of a longer axis": (t) => t.squeeze(0),
  "unsqueeze past the last axis": (t) => t.unsqueeze(4),
};
describe("a view that does not exist is a ShapeError with words and details:", () => {
  for (const [name, act] of Object.entries(cases)) {
    test(name, () => {
      using t = make();
      let thrown: unknown;
      try {
        act(t);
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(ShapeError);
      const { code, message, details } = thrown as ShapeError;
      expect(code).toBe("HEED_SHAPE");
      expect(message).toMatch(/^\[\w+\] /);
      expect(Object.keys(details).length).toBeGreaterThan(0);
    });
  }
});
test("a ninth axis is refused however it comes about", () => {
  using eight = ones([1, 1, 1, 1, 1, 1, 1, 1], { engine: "portable" });
  expect(() => eight.unsqueeze(0)).toThrow(ShapeError);
  expect(() => zeros([1, 1, 1, 1, 1, 1, 1, 1, 1], { engine: "portable" })).toThrow(ShapeError);
});
test("lengths that are not whole, negative or too many are refused", () => {
  for (const shape of [[-1], [1.5], [NaN], [Infinity], [2 ** 40, 2 ** 40], [2 ** 53]]) {
    expect(() => zeros(shape, { engine: "portable" })).toThrow(ShapeError);
  }
});
