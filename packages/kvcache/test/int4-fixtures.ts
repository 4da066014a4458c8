/** Caches of "int4" pages: rows that a token has wherever it is written, and what a page must hold once it is encoded. */
import {
  type PagedView,
  type Pages,
  type QuantisedGroups,
  scope,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { createRng, decodeGroupOracle, encodeGroupOracle, GROUP } from "@heed/testkit";
import { KvCache, type GroupLayout, type KvCacheOptions, type Sequence, type Step } from "../src/index.ts";
import { floats, layoutOf } from "./fixtures.ts";

export const HKV = 2;
export const D = 37; // two groups of channels, the second short
export const DV = 5;
export type Part = "k" | "v";

/** Two layers of pages of 4 tokens, all memory but the null page NaN. */
export function int4Cache(options: Partial<KvCacheOptions> = {}): KvCache {
  const limit = options.maxBytes === undefined ? { maxPages: 24 } : {};
  const sizes = { layers: 2, numKvHeads: HKV, headDim: D, valueHeadDim: DV, pageSize: 4, engine: "portable" };
  return new KvCache({ ...sizes, ...limit, dtype: "int4", ...options });
}
/** Numbers [Hkv, width] of a token's row: the same wherever it is written; multiples of 1/8 that every float dtype holds. */
export function tokenRow(id: number, layer: number, part: Part, heads: number, width: number): Float64Array {
  const rng = createRng(id * 1009 + layer * 31 + (part === "k" ? 0 : 7));
  return Float64Array.from({ length: heads * width }, () => (rng.int(0, 200) - 100) / 8);
}
/** Writes one layer's rows of a step whose tokens have these ids. */
export function writeTokens(cache: KvCache, step: Step, ids: readonly number[], layer: number): void {
  const { numKvHeads: H, headDim, valueHeadDim } = layoutOf(cache, layer);
  scope(() => {
    const rows = (part: Part, width: number): Tensor =>
      floats(
        ids.flatMap((id) => [...tokenRow(id, layer, part, H, width)]),
        [ids.length, H, width],
        "float32",
        cache.engine,
      );
    step.write(layer, rows("k", headDim), rows("v", valueHeadDim));
  });
}
/** Appends tokens with these ids in one step. */
export function appendTokens(
  cache: KvCache,
  lists: readonly (readonly [Sequence, readonly number[]])[],
): void {
  using step = cache.reserve(lists.map(([sequence, ids]) => ({ sequence, tokens: ids.length })));
  const ids = lists.flatMap(([, list]) => list);
  for (let layer = 0; layer < cache.layout.layers; layer++) writeTokens(cache, step, ids, layer);
  step.commit(ids);
}
/**
 * What the rows [Hkv, width] of a page stand for once it is encoded: keys in groups of tokens of a channel, values in groups of channels of a
 * token.
 */
export function encodedRows(rows: readonly Float64Array[], width: number, part: Part): Float64Array[] {
  const out = rows.map((row) => row.slice());
  const heads = (rows[0]?.length ?? 0) / width;
  const encode = (places: readonly (readonly [token: number, at: number])[]): void => {
    const numbers = decodeGroupOracle(encodeGroupOracle(places.map(([t, at]) => rows[t]![at]!)));
    places.forEach(([t, at], i) => (out[t]![at] = numbers[i]!));
  };
  const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
  for (let h = 0; h < heads; h++) {
    if (part === "k")
      for (let d = 0; d < width; d++)
        for (let t = 0; t < rows.length; t += GROUP)
          encode(range(t, Math.min(rows.length, t + GROUP)).map((token) => [token, h * width + d] as const));
    else
      for (let t = 0; t < rows.length; t++)
        for (let d = 0; d < width; d += GROUP)
          encode(range(d, Math.min(width, d + GROUP)).map((at) => [t, h * width + at] as const));
  }
  return out;
}
/** The rows of an encoded page whose tokens have these ids. */
function sealedRows(group: GroupLayout, layer: number, part: Part, ids: readonly number[]): Float64Array[] {
  const { numKvHeads: H, headDim, valueHeadDim } = group;
  const width = part === "k" ? headDim : valueHeadDim;
  return encodedRows(
    ids.map((id) => tokenRow(id, layer, part, H, width)),
    width,
    part,
  );
}
/** What encoded pages stand for, [P, Hkv, pageSize, width]. */
export function groupNumbers({ codes, scales, zeros, residual }: QuantisedGroups, part: Part): Float64Array {
  const [P, Hkv, pageSize, bytes] = codes.shape as unknown as [number, number, number, number];
  const width = residual.shape[3]!;
  const groups = scales.shape[2]!;
  const [c, s, z] = [codes, scales, zeros].map((t) => toFloat64((t as typeof scales).contiguous()));
  const out = new Float64Array(P * Hkv * pageSize * width);
  let at = 0;
  for (let page = 0; page < P * Hkv; page++)
    for (let t = 0; t < pageSize; t++)
      for (let d = 0; d < width; d++) {
        const byte = c![(page * pageSize + t) * bytes + Math.floor(d / GROUP) * 16 + (d % 16)]!;
        const code = d % GROUP < 16 ? byte & 15 : byte >> 4;
        const group = part === "k" ? Math.floor(t / GROUP) : Math.floor(d / GROUP);
        const g = (page * groups + group) * (part === "k" ? width : pageSize) + (part === "k" ? d : t);
        out[at++] = z![g]! + s![g]! * code;
      }
  return out;
}
/** What a sequence's rows of one layer are, and whether each lies in an encoded page. */
export function storedRows(
  cache: KvCache,
  sequence: Sequence,
  layer: number,
  part: Part,
): { rows: number[][]; sealed: boolean[] } {
  using step = cache.reserve([{ sequence, tokens: 0 }]);
  return scope(() => {
    const view: PagedView<Pages> = step.view(layer);
    const pages = (part === "k" ? view.kPages : view.vPages) as QuantisedGroups;
    const [sealedAll, waiting] = [groupNumbers(pages, part), toFloat64(pages.residual.contiguous())];
    const { pageSize, numKvHeads: H } = layoutOf(cache, layer);
    const [P, width] = [pages.codes.shape[0]!, pages.residual.shape[3]!];
    const names = view.table.indices.data.slice();
    const rows: number[][] = [];
    const sealed: boolean[] = [];
    for (let t = 0; t < sequence.length; t++) {
      const name = names[Math.floor(t / pageSize)]!;
      const [from, page] = name < P ? [sealedAll, name] : [waiting, name - P];
      const heads = Array.from({ length: H }, (_, h) => {
        const at = ((page * H + h) * pageSize + (t % pageSize)) * width;
        return [...from.subarray(at, at + width)];
      });
      rows.push(heads.flat());
      sealed.push(name < P);
    }
    return { rows, sealed };
  });
}
/** What {@link storedRows} must give for tokens with these ids of which the first `sealed` are encoded. */
export function expectedRows(
  cache: KvCache,
  ids: readonly number[],
  sealed: number,
  layer: number,
  part: Part,
): number[][] {
  const group = layoutOf(cache, layer);
  const { pageSize, numKvHeads: H, headDim, valueHeadDim } = group;
  const width = part === "k" ? headDim : valueHeadDim;
  const rows: Float64Array[] = [];
  for (let t = 0; t < sealed; t += pageSize)
    rows.push(...sealedRows(group, layer, part, ids.slice(t, t + pageSize)));
  for (const id of ids.slice(sealed)) rows.push(tokenRow(id, layer, part, H, width));
  return rows.map((row) => [...row]);
}
/** Tokens of a sequence in encoded pages. */
export function sealedTokens(cache: KvCache, sequence: Sequence): number {
  return storedRows(cache, sequence, 0, "k").sealed.filter(Boolean).length;
}
