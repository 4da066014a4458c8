/** A paged key/value cache that attention reads in place. */
export { BlockPool, NULL_PAGE } from "./block-pool.ts";
export { type CacheStats, KvCache, type KvCacheOptions } from "./cache.ts";
export { InvariantError, StateError } from "./errors.ts";
export { FixedTable, type FixedTableOptions } from "./fixed-table.ts";
export { Sequence } from "./sequence.ts";
export type { CacheLayout } from "./state.ts";
export { Step, type StepRequest } from "./step.ts";
