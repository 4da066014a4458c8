/** A paged key/value cache that attention reads in place. */
export { BlockPool, DEFAULT_PRIORITY, MAX_PRIORITY, NULL_PAGE, type Retention } from "./block-pool.ts";
export type { GroupTable } from "./block-table.ts";
export { KvCache } from "./cache.ts";
export { InvariantError, PageFileError, type PageFileReason, StateError } from "./errors.ts";
export type { ClearedEvent, EventBatch, PrefixEvent, RemovedEvent, StoredEvent } from "./events.ts";
export type { Fence } from "./fences.ts";
export { FolderTier } from "./folder-tier.ts";
export { FixedTable, type FixedTableOptions } from "./fixed-table.ts";
export { HostTier } from "./host-tier.ts";
export type {
  CacheDType,
  CacheLayout,
  CommonOptions,
  GroupedCacheOptions,
  GroupLayout,
  GroupOptions,
  GroupShape,
  KvCacheOptions,
  ResidualDType,
} from "./layout.ts";
export type { PageSource, TransferOptions } from "./page-file-write.ts";
export type { PageFileHeader } from "./page-format.ts";
export type { QuotaOptions } from "./namespaces.ts";
export type { PrefixEntry, PrefixOptions, PrefixStats } from "./prefix-index.ts";
export type { PrefixMatch } from "./prefix-match.ts";
export type { PrefixOwner } from "./prefix-roots.ts";
export type { MatchOptions, OpenOptions } from "./prefixes.ts";
export { Sequence } from "./sequence.ts";
export type { CacheStats, GroupStats, PageCounts } from "./stats.ts";
export { Step, type StepRequest } from "./step.ts";
export type { PageSink, Tier, TierStats } from "./tiers.ts";
export { type ReplayOptions, type ReplayReport, replayTrace, type TraceDifference } from "./replay.ts";
export type { Recording } from "./trace-record.ts";
export type { TraceCommand, TraceCounts, TraceHeader, TracePages } from "./trace.ts";
export type { TraceLine } from "./trace-parse.ts";
export type { LoadedPrefixes } from "./prefix-load.ts";
export type { LoadOptions } from "./swap.ts";
