/** Random page tables: ragged batches that mix prefill and decode, over pages in random order. */
import fc from "fast-check";
import type { Arbitrary } from "fast-check";
import type { PageTable } from "../oracle/paged.ts";
import { createRng } from "../rng.ts";

/** A page table, with the number of pages it draws from and a seed for values. */
export interface PagedProblem extends PageTable {
  readonly queryIndptr: Int32Array;
  readonly indptr: Int32Array;
  readonly indices: Int32Array;
  readonly lengths: Int32Array;
  /** Pages that exist; some belong to no sequence. */
  readonly numPages: number;
  /** Queries in all, the last of queryIndptr. */
  readonly T: number;
  readonly seed: number;
}

/** Largest sizes of {@link pageTable}. */
export interface PageTableLimits {
  /** Default 4. */
  readonly maxSequences?: number | undefined;
  /** Default 40. */
  readonly maxLength?: number | undefined;
  /** Default 8. */
  readonly maxQueries?: number | undefined;
  /** Default 1, 2, 4, 8, 16. */
  readonly pageSizes?: readonly number[] | undefined;
}

function runningTotal(counts: readonly number[]): Int32Array {
  const indptr = new Int32Array(counts.length + 1);
  counts.forEach((count, n) => {
    indptr[n + 1] = indptr[n]! + count;
  });
  return indptr;
}

/**
 * Page tables within `limits`. A sequence has 0 to maxLength keys and, each with equal chance, one query (decode) or
 * up to maxQueries (a prefill chunk), never more queries than keys. Pages are dealt in random order; up to three
 * belong to nobody. Shrinks towards one short sequence.
 */
export function pageTable(limits: PageTableLimits = {}): Arbitrary<PagedProblem> {
  const { maxSequences = 4, maxLength = 40, maxQueries = 8, pageSizes = [1, 2, 4, 8, 16] } = limits;
  const queries = fc.oneof(fc.constant(1), fc.nat({ max: maxQueries }));
  const sequence = fc.record({ length: fc.nat({ max: maxLength }), queries });
  return fc
    .record({
      pageSize: fc.constantFrom(...pageSizes),
      sequences: fc.array(sequence, { minLength: 1, maxLength: maxSequences }),
      spare: fc.nat({ max: 3 }),
      seed: fc.nat({ max: 0xffff }),
    })
    .map(({ pageSize, sequences, spare, seed }) => {
      const lengths = Int32Array.from(sequences, (s) => s.length);
      const queryIndptr = runningTotal(sequences.map((s) => Math.min(s.queries, s.length)));
      const indptr = runningTotal(sequences.map((s) => Math.ceil(s.length / pageSize)));
      const numPages = indptr[sequences.length]! + spare;
      const dealt = createRng(seed).permutation(numPages).slice(0, indptr[sequences.length]);
      const indices = Int32Array.from(dealt);
      const T = queryIndptr[sequences.length]!;
      return { pageSize, queryIndptr, indptr, indices, lengths, numPages, T, seed };
    });
}
