/** What can be done to a cache, at random, and the caches it is done to. */
import type { GroupedCacheOptions, KvCacheOptions, PrefixOwner } from "../../src/index.ts";

/** One command. Its numbers mean what the command makes of them, so that each is good in any state. */
export interface Command {
  readonly op: Op;
  /** Picks the sequence, step, owner and so on. */
  readonly who: number;
  /** 1 to {@link MAX_IDS} ids of 0 and 1: few, so that prefixes meet. */
  readonly ids: readonly number[];
  /** Which call from now fails, where one is to; from {@link NO_FAULT} on none. */
  readonly fault: number;
}
export const MAX_IDS = 9;
export const MAX_WHO = 11;
export const NO_FAULT = 10;
export const MAX_FAULT = 80;

/** How often each command comes, of {@link OPS}.length. */
const WEIGHTS = {
  open: 2,
  match: 8,
  partial: 4,
  append: 18,
  begin: 2,
  commit: 2,
  cancel: 1,
  early: 1,
  fork: 4,
  truncate: 4,
  release: 8,
  fence: 2,
  lift: 2,
  swapOut: 3,
  swapIn: 6,
  leave: 1,
  rot: 4,
  save: 1,
  load: 1,
  damage: 1,
  savePrefixes: 1,
  loadPrefixes: 3,
  damagePrefixes: 1,
  invalidate: 1,
  reset: 1,
} as const;
export type Op = keyof typeof WEIGHTS;
/** Every command, as often as it is to come. */
export const OPS: readonly Op[] = (Object.keys(WEIGHTS) as Op[]).flatMap((op) =>
  new Array<Op>(WEIGHTS[op]).fill(op),
);

/** Whose blocks are: epochs end for an adapter, or for all. */
export const OWNERS: readonly PrefixOwner[] = [
  {},
  { namespace: "a" },
  { namespace: "a", adapter: "a" },
  { namespace: "b", adapter: "a" },
];
/** Most blocks of a namespace. */
export const QUOTAS: Readonly<Record<string, number>> = { a: 3 };

type Setup = Required<Pick<GroupedCacheOptions, "groups" | "draftMargin">>;
const rows = { numKvHeads: 1, headDim: 3, valueHeadDim: 2 } as const;
const tokenMajor: KvCacheOptions["layout"] = "token-major";
/** Full, windowed and latent groups in every storage; pools so small that evictions and copies are the rule. */
export const SETUPS: readonly Setup[] = [
  {
    draftMargin: 2,
    groups: [
      { ...rows, layers: [0, 2], pageSize: 4, maxPages: 11 },
      {
        ...rows,
        layers: [1],
        pageSize: 2,
        maxPages: 18,
        window: 5,
        sinks: 3,
        layout: tokenMajor,
        dtype: "bfloat16",
      },
      { ...rows, layers: [3], pageSize: 4, maxPages: 10, window: 3, valuesInKeys: true },
    ],
  },
  {
    draftMargin: 0,
    groups: [
      { ...rows, layers: [2], pageSize: 2, maxPages: 20, layout: tokenMajor, dtype: "float16" },
      { ...rows, layers: [0], pageSize: 4, maxPages: 11, window: 6, sinks: 2, dtype: "int8" },
      { ...rows, layers: [1], pageSize: 1, maxPages: 40, valuesInKeys: true },
    ],
  },
  {
    draftMargin: 3,
    groups: [
      { ...rows, layers: [0], numKvHeads: 2, pageSize: 2, maxPages: 16, layout: tokenMajor, dtype: "int8" },
      { ...rows, layers: [1], pageSize: 2, maxPages: 16, window: 4, dtype: "float8e4m3" },
      { ...rows, layers: [2], pageSize: 1, maxPages: 30, window: 5, sinks: 1, valuesInKeys: true },
    ],
  },
  {
    draftMargin: 2,
    groups: [
      { ...rows, layers: [0], pageSize: 4, maxPages: 11, dtype: "int4", maxResidualPages: 7 },
      {
        ...rows,
        layers: [1],
        numKvHeads: 2,
        pageSize: 2,
        maxPages: 18,
        window: 5,
        sinks: 3,
        layout: tokenMajor,
        dtype: "int4",
        residualDtype: "bfloat16",
        maxResidualPages: 12,
      },
      { ...rows, layers: [2], pageSize: 1, maxPages: 40, valuesInKeys: true },
    ],
  },
  {
    draftMargin: 0,
    groups: [
      { ...rows, layers: [1, 2], pageSize: 2, maxPages: 20, dtype: "int4", maxResidualPages: 9 },
      { ...rows, layers: [0], pageSize: 4, maxPages: 11, window: 6, sinks: 2 },
    ],
  },
];
