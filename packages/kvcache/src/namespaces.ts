/** How many blocks of each namespace may be published at once. */
export interface QuotaOptions {
  /** Quota of each namespace that is not in `quotas`; default none. */
  readonly quota?: number | undefined;
  /** Quotas by namespace. */
  readonly quotas?: Readonly<Record<string, number>> | undefined;
}

/** The published blocks of each namespace, in order of use: every block stands before those that lead to it, so a tail goes first. */
export class Namespaces {
  readonly #quotas: ReadonlyMap<string, number>;
  readonly #quota: number;
  readonly #blocks = new Map<string, Set<number>>();
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
    return this.#blocks.get(name)?.size ?? 0;
  }
  /** Whether it may have another one. */
  hasRoom(name: string): boolean {
    return this.count(name) < this.quota(name);
  }
  add(name: string, node: number): void {
    let blocks = this.#blocks.get(name);
    if (blocks === undefined) this.#blocks.set(name, (blocks = new Set()));
    blocks.add(node);
  }
  remove(name: string, node: number): void {
    const blocks = this.#blocks.get(name);
    blocks?.delete(node);
    if (blocks?.size === 0) this.#blocks.delete(name);
  }
  /** The chain of blocks that ends in `last` was used. Costs nothing where there is no quota. */
  touch(name: string, last: number, parent: Int32Array, depth: Int32Array): void {
    const blocks = this.#blocks.get(name);
    if (blocks === undefined || this.quota(name) === Infinity) return;
    for (let node = last; depth[node]! > 0; node = parent[node]!) if (blocks.delete(node)) blocks.add(node);
  }
  /** The block that has gone unused the longest of those that may go; 0 when none may. */
  oldest(name: string, mayGo: (node: number) => boolean): number {
    for (const node of this.#blocks.get(name) ?? []) if (mayGo(node)) return node;
    return 0;
  }
  clear(): void {
    this.#blocks.clear();
  }
}
