import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  assertClose,
  attentionOracle,
  createRng,
  gatherPages,
  pageTable,
  pagedAttentionOracle,
  poisonPages,
} from "../../src/index.ts";

test("a sequence is gathered through its own pages in table order", () => {
  const table = { pageSize: 2, queryIndptr: [0, 1], indptr: [0, 2], indices: [2, 0], lengths: [3] };
  // [3 pages, Hkv 2, pageSize 2, width 1]
  const pages = [1, 2, 3, 4, NaN, NaN, NaN, NaN, 5, 6, 7, 8];
  expect([...gatherPages(pages, table, 0, { Hkv: 2, width: 1 })]).toEqual([5, 7, 6, 8, 1, 3]);
});

test("ragged batches equal one sequence at a time, and unused pages are not read", () => {
  const [Hq, Hkv, D, Dv] = [4, 2, 3, 5];
  fc.assert(
    fc.property(pageTable({ maxLength: 12 }), fc.boolean(), (table, isCausal) => {
      const rng = createRng(table.seed);
      const slots = table.numPages * Hkv * table.pageSize;
      const [kPages, vPages, q] = [
        rng.normalArray(slots * D),
        rng.normalArray(slots * Dv),
        rng.normalArray(table.T * Hq * D),
      ];
      poisonPages(kPages, table, { numPages: table.numPages, Hkv, width: D });
      poisonPages(vPages, table, { numPages: table.numPages, Hkv, width: Dv });
      const { out, lse } = pagedAttentionOracle(q, kPages, vPages, { Hq, Hkv, D, Dv, table, isCausal });
      expect(out.some(Number.isNaN)).toBe(false);
      table.lengths.forEach((Sk, n) => {
        const [first, last] = [table.queryIndptr[n]!, table.queryIndptr[n + 1]!];
        const k = gatherPages(kPages, table, n, { Hkv, width: D });
        const v = gatherPages(vPages, table, n, { Hkv, width: Dv });
        const dims = { B: 1, S: last - first, Sk, Hq, Hkv, D, Dv };
        const alone = attentionOracle(q.subarray(first * Hq * D, last * Hq * D), k, v, { dims, isCausal });
        assertClose(out.subarray(first * Hq * Dv, last * Hq * Dv), alone.out);
        for (let h = 0; h < Hq; h++)
          for (let i = 0; i < dims.S; i++) expect(lse[(first + i) * Hq + h]).toBe(alone.lse[h * dims.S + i]!);
      });
    }),
    { numRuns: 60 },
  );
});

test("a table that lists too few pages, or one that does not exist, is refused", () => {
  const table = { pageSize: 2, queryIndptr: [0, 1], indptr: [0, 1], indices: [0], lengths: [3] };
  const width = { Hkv: 1, width: 1 };
  expect(() => gatherPages([1, 2], table, 0, width)).toThrow(/needs 3 slots; its table lists 1 pages of 2/);
  expect(() => gatherPages([1, 2], { ...table, lengths: [1], indices: [1] }, 0, width)).toThrow(/page 1/);
});
