import { accumulatorOf, type FloatDType } from "../../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../../core/errors.ts";
import { allocate, show, Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { recheck } from "../../engine/recorder.ts";
import { floatOnly, hostIntegers, int32Only, oneEngine } from "../../ops/check.ts";
import type { ScoreOptions } from "../attention/options.ts";
import { resolveScores, type ScoreRules } from "../attention/plan.ts";
import {
  type Pages,
  type PageShape,
  pageShape,
  showPages,
  storageOf,
  tensorsOf,
} from "../quantised/pages.ts";

declare const checked: unique symbol;
/**
 * Which pages hold which sequences of a ragged batch of N, the form FlashInfer- and vLLM-style kernels take. Query rows
 * queryIndptr[n] .. queryIndptr[n + 1] - 1 belong to sequence n and stand at its end; its token t lies in page
 * indices[indptr[n] + floor(t / pageSize)] at row t mod pageSize. Of "int4" pages, a number from P on is residual page number - P.
 * All int32.
 */
export interface PageTable {
  readonly queryIndptr: Tensor<"int32">; // [N + 1]
  readonly indptr: Tensor<"int32">; // [N + 1]
  readonly indices: Tensor<"int32">; // [pages in use]
  readonly lengths: Tensor<"int32">; // [N] tokens of each sequence, those of this step included
  /** Where the step's new rows go: page * pageSize + row for each query row [T]; -1 for a row that is not stored. */
  readonly slots: Tensor<"int32">;
  /** Rises whenever the contents change; a table is validated once per epoch. */
  readonly epoch: number;
}
/** Pages of one layer and the table over them: what a cache hands to attention. `PagedView<Pages>` may be quantised. */
export interface PagedView<P extends Pages = Tensor> {
  readonly kPages: P; // [P, Hkv, pageSize, D], rows contiguous
  readonly vPages: P; // [P, Hkv, pageSize, Dv], stored as kPages are
  readonly table: PageTable;
  /** First tokens of a sequence whose pages are never given back; absent: nobody says. */
  readonly keptSinks?: number | undefined;
}
/** Lengths of a paged problem. */
export interface PagedDims {
  readonly N: number;
  readonly T: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly pageSize: number;
}
/** A checked problem of attention over pages. Only {@link planPagedAttention} makes one. */
export interface PagedAttentionPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly dims: PagedDims;
  readonly rules: ScoreRules; // no mask, lengths or offsets of its own: queryOffset is "end"
  readonly q: Tensor<FloatDType>; // [T, Hq, D]
  readonly view: PagedView<Pages>;
  readonly out: Tensor<FloatDType>; // [T, Hq, Dv], q's dtype
  readonly lse: Tensor | undefined; // [T, Hq], accumulator dtype
}

type Ints = Tensor<"int32">;
const validated = new WeakMap<PageTable, string>();
function bad(why: string, details: Record<string, unknown>): never {
  throw new ArgumentError(`[pagedAttention] ${why}`, details);
}
/** The elements of an int32 vector on the host. */
function values(t: Tensor<"int32">, name: string, length?: number): ArrayLike<number> {
  int32Only("pagedAttention", name, t);
  if (t.rank !== 1 || (length !== undefined && t.size !== length)) {
    throw new ShapeError(`[pagedAttention] ${name} must be int32[${length ?? "n"}]; got ${show(t)}`, {
      [name]: t.shape,
    });
  }
  return hostIntegers(t) as ArrayLike<number>;
}
function rising(indptr: ArrayLike<number>, name: string, end: number): void {
  if (indptr[0] !== 0) bad(`${name} must start at 0; got ${indptr[0]}`, { [name]: indptr[0] });
  for (let n = 1; n < indptr.length; n++) {
    if (indptr[n]! < indptr[n - 1]!)
      bad(`${name} must not fall; got ${indptr[n - 1]}, ${indptr[n]} at ${n}`, { [name]: n });
  }
  if (indptr[indptr.length - 1] !== end)
    bad(`${name} must end at ${end}; got ${indptr[indptr.length - 1]}`, { [name]: end });
}
/** Validates a table once per epoch, and in every replay. */
function validateOnce(table: PageTable, pages: number, pageSize: number, T: number): void {
  const key = `${table.epoch}/${pages}/${pageSize}/${T}`;
  if (validated.get(table) !== key) validateTable(table, pages, pageSize, T);
  validated.set(table, key);
  const { queryIndptr, indptr, indices, lengths } = table;
  recheck([queryIndptr, indptr, indices, lengths], (given) => {
    const [q, p, i, l] = given as readonly [Ints, Ints, Ints, Ints];
    validateTable({ queryIndptr: q, indptr: p, indices: i, lengths: l }, pages, pageSize, T);
  });
}
/** Throws unless every page number is in range and every sequence has pages for its tokens and tokens for its queries. */
function validateTable(
  table: Omit<PageTable, "slots" | "epoch">,
  pages: number,
  pageSize: number,
  T: number,
): void {
  const lengths = values(table.lengths, "lengths");
  const N = lengths.length;
  const queries = values(table.queryIndptr, "queryIndptr", N + 1);
  const indptr = values(table.indptr, "indptr", N + 1);
  const indices = values(table.indices, "indices");
  rising(queries, "queryIndptr", T);
  rising(indptr, "indptr", Math.min(indices.length, indptr[N] ?? 0));
  for (let n = 0; n < N; n++) {
    const listed = indptr[n + 1]! - indptr[n]!;
    const length = lengths[n]!;
    const rows = queries[n + 1]! - queries[n]!;
    if (length < 0 || length > listed * pageSize) {
      bad(
        `sequence ${n} has ${length} tokens, but its ${listed} pages of ${pageSize} hold at most ${listed * pageSize}`,
        { sequence: n, length, listed },
      );
    }
    if (rows > length)
      bad(`sequence ${n} has ${rows} queries but only ${length} tokens`, { sequence: n, rows, length });
  }
  for (let i = 0; i < indptr[N]!; i++) {
    const page = indices[i]!;
    if (page < 0 || page >= pages)
      bad(`page ${page} at ${i} is outside 0..${pages - 1}`, { page, at: i, pages });
  }
}
/** Lengths of pages that serve the queries q [T, Hq, D]. Throws DTypeError, ShapeError. */
function pageDims(q: Tensor, kPages: Pages, vPages: Pages): PageShape & { readonly Dv: number } {
  const keys = pageShape("pagedAttention", kPages, "keys");
  const storage = storageOf(kPages);
  const floats = kPages instanceof Tensor;
  if (storage !== storageOf(vPages) || (floats && (q.dtype === "float64") !== (storage === "float64"))) {
    throw new DTypeError(
      `[pagedAttention] key and value pages must have one dtype, float64 exactly when q is; got q ${show(q)}, kPages ${showPages(kPages)}, vPages ${showPages(vPages)}`,
      { q: q.dtype, kPages: storage, vPages: storageOf(vPages) },
    );
  }
  const values = pageShape("pagedAttention", vPages, "values");
  const fits =
    keys !== undefined &&
    values !== undefined &&
    q.rank === 3 &&
    keys.width === q.shape[2] &&
    keys.width > 0 &&
    values.width > 0 &&
    keys.pageSize > 0 &&
    keys.Hkv > 0 &&
    q.shape[1]! % keys.Hkv === 0 &&
    (["P", "R", "Hkv", "pageSize"] as const).every((name) => keys[name] === values[name]);
  if (fits) return { ...keys, Dv: values.width };
  throw new ShapeError(
    `[pagedAttention] needs q [T, Hq, D], kPages [P, Hkv, pageSize, D], vPages [P, Hkv, pageSize, Dv], Hq a multiple of Hkv; got q ${show(q)}, kPages ${showPages(kPages)}, vPages ${showPages(vPages)}`,
    { q: q.shape, kPages: showPages(kPages), vPages: showPages(vPages) },
  );
}
/** Throws ArgumentError where a query may see first tokens whose pages may have gone back. */
function requireSinks({ keptSinks = Infinity }: PagedView<Pages>, { sinkTokens }: ScoreRules): void {
  if (sinkTokens <= keptSinks) return;
  bad(
    `sinkTokens must be at most the ${keptSinks} first tokens whose pages the cache keeps; got ${sinkTokens}; give the cache's group sinks: ${sinkTokens}`,
    { sinkTokens, keptSinks },
  );
}
/**
 * Checks attention over pages and allocates its result. The table is read on the host, once per epoch. Throws ShapeError, DTypeError,
 * ArgumentError, DeviceError, DisposedError, OutOfMemoryError.
 */
export function planPagedAttention(
  q: Tensor,
  view: PagedView<Pages>,
  o: ScoreOptions,
  wantLse: boolean,
): PagedAttentionPlan {
  const { kPages, vPages, table } = view;
  const engine = oneEngine(
    "pagedAttention",
    q,
    ...tensorsOf(kPages),
    ...tensorsOf(vPages),
    table.queryIndptr,
    table.indptr,
    table.indices,
    table.lengths,
    o.alibiSlopes,
    o.sinks,
  );
  floatOnly("pagedAttention", q);
  const [T, Hq, D] = q.shape as unknown as [number, number, number];
  const { P, R, Hkv, pageSize, Dv } = pageDims(q, kPages, vPages);
  if (engine.device === "cpu") validateOnce(table, P + R, pageSize, T);
  const dtype = q.dtype as FloatDType;
  const rules: ScoreRules = {
    ...resolveScores("pagedAttention", { isCausal: true, ...o }, D, Hq, dtype),
    mask: undefined,
    kvLengths: undefined,
    queryOffset: "end",
  };
  requireSinks(view, rules);
  const out = allocate(engine, dtype, [T, Hq, Dv]);
  const lse = wantLse ? allocate(engine, accumulatorOf(dtype), [T, Hq]) : undefined;
  const dims: PagedDims = { N: table.lengths.size, T, Hq, Hkv, D, Dv, pageSize };
  return { engine, dims, rules, q, view, out, lse } as unknown as PagedAttentionPlan;
}
