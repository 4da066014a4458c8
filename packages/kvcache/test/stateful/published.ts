/** What may be found in an index of prefixes, and whether its events tell the same as it does. */
import type { KvCache, PrefixEntry, PrefixEvent } from "../../src/index.ts";
import { must } from "./checks.ts";
import { OWNERS, QUOTAS } from "./commands.ts";

const ownerOf = ({ namespace, adapter }: Pick<PrefixEntry, "namespace" | "adapter">): number =>
  OWNERS.findIndex((o) => (o.namespace ?? "") === namespace && o.adapter === adapter);

/** An index that is kept from events, and every block that was ever committed. */
export class Published {
  readonly #blockTokens: number;
  readonly #committed = new Set<string>();
  readonly #index = new Map<string, string>(); // key to owner and all ids
  #next = 0;
  constructor(blockTokens: number) {
    this.#blockTokens = blockTokens;
  }
  /** Ids from `from` on have been committed behind those before them. */
  commit(owner: number, ids: readonly number[], from: number): void {
    const b = this.#blockTokens;
    for (let end = (Math.floor(from / b) + 1) * b; end <= ids.length; end += b)
      this.#committed.add(`${owner}:${ids.slice(0, end).join("")}`);
  }
  #apply(event: PrefixEvent): void {
    if (event.kind === "cleared") this.#index.clear();
    else if (event.kind === "removed") for (const key of event.keys) this.#index.delete(key);
    else this.#enter(event);
  }
  #enter(entry: Omit<PrefixEntry, "kind">): void {
    const before = this.#index.get(entry.parent) ?? `${ownerOf(entry)}:`;
    this.#index.set(entry.key, before + entry.tokens.join(""));
  }
  /** Every block that can be found was committed whole, the events give the same index, and quotas hold. */
  agree(cache: KvCache): void {
    const { events, next, lost } = cache.events(this.#next);
    this.#next = next;
    const entries = cache.prefixes();
    if (lost > 0) {
      this.#index.clear();
      for (const entry of entries) this.#enter(entry);
    } else for (const event of events) this.#apply(event);
    must(this.#index.size === entries.length, "events tell of another number of blocks");
    const counts = new Map<string, number>();
    for (const { key, namespace } of entries) {
      const block = this.#index.get(key);
      must(block !== undefined, "events do not tell of a block");
      must(this.#committed.has(block), `the block ${block} was never committed`);
      counts.set(namespace, (counts.get(namespace) ?? 0) + 1);
    }
    for (const [name, quota] of Object.entries(QUOTAS))
      must(
        (counts.get(name) ?? 0) <= quota,
        `${counts.get(name)} blocks of ${name}, which has a quota of ${quota}`,
      );
  }
}
