import { DEFAULT_PRIORITY, type Retention } from "./block-pool.ts";

/** How many blocks of each namespace may be published at once. */
export interface QuotaOptions {
  /** Quota of each namespace that is not in `quotas`; default none. */
  readonly quota?: number | undefined;
  /** Quotas by namespace. */
  readonly quotas?: Readonly<Record<string, number>> | undefined;
}

/** What is published of one namespace. */
interface Published {
  /** In order of use: every block stands before those that lead to it, so a tail goes first. */
  readonly byUse: Set<number>;
  /** No block has a lower priority, nor gets one by expiry. */
  lowest: number;
}

/** The published blocks of each namespace, and which of them makes room for another. */
export class Namespaces {
  readonly #quotas: ReadonlyMap<string, number>;
  readonly #quota: number;
  readonly #blocks = new Map<string, Published>();
  constructor({ quota = Infinity, quotas = {} }: QuotaOptions) {
    this.#quota = quota;
    this.#quotas = new Map(Object.entries(quotas));
  }
  /** Most blocks that a namespace may have; Infinity without a quota. */
  quota(name: string): number {
    return this.#quotas.get(name) ?? this.#quota;
  }
  /** Blocks of a namespace. */
  count(name: string): number {
    return this.#blocks.get(name)?.byUse.size ?? 0;
  }
  /** No block of a namespace has a lower priority than this, nor gets one by expiry. */
  lowest(name: string): number {
    return this.#blocks.get(name)?.lowest ?? Infinity;
  }
  /** Whether it may have another one. */
  hasRoom(name: string): boolean {
    return this.count(name) < this.quota(name);
  }
  /** Counts a block, or one that it has with pages that are kept otherwise. */
  add(name: string, node: number, { priority = DEFAULT_PRIORITY, expires = Infinity }: Retention): void {
    let blocks = this.#blocks.get(name);
    if (blocks === undefined) this.#blocks.set(name, (blocks = { byUse: new Set(), lowest: Infinity }));
    blocks.byUse.add(node);
    const least = expires === Infinity ? priority : Math.min(priority, DEFAULT_PRIORITY);
    blocks.lowest = Math.min(blocks.lowest, least);
  }
  remove(name: string, node: number): void {
    const blocks = this.#blocks.get(name);
    blocks?.byUse.delete(node);
    if (blocks?.byUse.size === 0) this.#blocks.delete(name);
  }
  /** The chain of blocks that ends in `last` was used. Costs nothing where there is no quota. */
  touch(name: string, last: number, parent: Int32Array, depth: Int32Array): void {
    const blocks = this.#blocks.get(name)?.byUse;
    if (blocks === undefined || this.quota(name) === Infinity) return;
    for (let node = last; depth[node]! > 0; node = parent[node]!) if (blocks.delete(node)) blocks.add(node);
  }
  /**
   * Of the blocks that may go one of the lowest priority, up to `most`, and of those the one that has gone unused the longest; 0 when
   * there is none. Stops at the first that is as low as any can be: where no priorities are given, at the first that may go.
   */
  first(
    name: string,
    most: number,
    mayGo: (node: number) => boolean,
    priorityOf: (node: number) => number,
  ): number {
    const { byUse, lowest } = this.#blocks.get(name) ?? { byUse: [], lowest: Infinity };
    let [first, limit] = [0, most + 1];
    for (const node of byUse) {
      const priority = priorityOf(node);
      if (priority >= limit || !mayGo(node)) continue;
      [first, limit] = [node, priority];
      if (limit <= lowest) break;
    }
    return first;
  }
  clear(): void {
    this.#blocks.clear();
  }
}
