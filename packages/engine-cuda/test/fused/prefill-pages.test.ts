/** Prefill over pages: tiles of keys that lie in several pages, copied pass by pass, give the bits of keys that lie behind one another. */
import { attention, getEngine, pagedAttention, randn, tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import "../../src/index.ts";
import { emulatedMissing, ENGINE } from "../support.ts";
import { hopper } from "./engines.ts";

const T = 150;
const NAMES = emulatedMissing === undefined ? [...new Set([ENGINE, hopper()])] : [];
describe.each(NAMES)("prefill over pages on %s", (name) => {
  test.each([
    [64, 16],
    [64, 32],
    [128, 8],
    [128, 24],
    [128, 64],
    [256, 4],
    [64, 5],
  ])("of head size %p in pages of %p is that of the same keys without pages, to the bit", async (D, size) => {
    const engine = getEngine(name);
    const [P, Hkv] = [Math.ceil(T / size), 2];
    const random = (shape: number[], seed: number) => randn(shape, { seed, dtype: "bfloat16", engine });
    const int32 = (values: number[]) => tensor(values, undefined, { dtype: "int32", engine });
    using q = random([T, 4, D], 1);
    const [kPages, vPages] = [random([P, Hkv, size, D], 2), random([P, Hkv, size, D], 3)];
    const table = {
      queryIndptr: int32([0, T]),
      indptr: int32([0, P]),
      indices: int32(Array.from({ length: P }, (_, i) => i)),
      lengths: int32([T]),
      slots: int32(Array.from({ length: T }, () => -1)),
      epoch: 1,
    };
    using paged = pagedAttention(q, { kPages, vPages, table }, { fused: "require" });
    const [k, v] = [kPages, vPages].map((pages) =>
      pages
        .transpose(1, 2)
        .contiguous()
        .reshape([1, P * size, Hkv, D])
        .slice(1, 0, T),
    );
    using dense = attention(q.reshape([1, T, 4, D]), k!, v!, { isCausal: true, fused: "require" });
    expect(await paged.read()).toEqual(await dense.read());
  });
});
