import { rootKey } from "./prefix-keys.ts";
import type { PrefixNodes } from "./prefix-nodes.ts";

/** Whose prefixes are meant: nothing is ever found across two of these. */
export interface PrefixOwner {
  /** A tenant; default "". */
  readonly namespace?: string | undefined;
  /** The adapter that computed the rows; default none, which is not the adapter "". */
  readonly adapter?: string | undefined;
}
/** The tree of one owner, from one invalidation to the next. */
export interface PrefixRoot {
  readonly namespace: string;
  readonly adapter: string | undefined;
  readonly modelEpoch: number;
  readonly adapterEpoch: number;
  /** 0 while the tree has no blocks. */
  node: number;
}
/** One text for each owner: JSON writes lone surrogates as escapes, so that no two owners share one. */
function ownerKey({ namespace, adapter }: PrefixRoot): string {
  return JSON.stringify([namespace, adapter ?? null]);
}

/** The roots of the trees that have blocks, and the epochs of model and adapters. */
export class PrefixRoots {
  readonly #nodes: PrefixNodes;
  readonly #identity: string;
  readonly #byOwner = new Map<string, PrefixRoot>();
  readonly #byNode = new Map<number, PrefixRoot>();
  readonly #adapterEpochs = new Map<string | undefined, number>();
  #modelEpoch = 0;
  /** `identity` stands for model and layout. */
  constructor(nodes: PrefixNodes, identity: string) {
    this.#nodes = nodes;
    this.#identity = identity;
  }
  /** The root of an owner as of now. */
  of({ namespace = "", adapter }: PrefixOwner): PrefixRoot {
    const adapterEpoch = this.#adapterEpochs.get(adapter) ?? 0;
    const root = { namespace, adapter, modelEpoch: this.#modelEpoch, adapterEpoch, node: 0 };
    return this.#byOwner.get(ownerKey(root)) ?? root;
  }
  /** The root of the tree that a node is in. */
  above(node: number): PrefixRoot | undefined {
    return this.#byNode.get(this.#nodes.root[node]!);
  }
  all(): PrefixRoot[] {
    return [...this.#byOwner.values()];
  }
  /** Whether nothing has invalidated the tree. */
  isCurrent({ adapter, modelEpoch, adapterEpoch }: PrefixRoot): boolean {
    return modelEpoch === this.#modelEpoch && adapterEpoch === (this.#adapterEpochs.get(adapter) ?? 0);
  }
  /** Begins a new epoch of an adapter, or of the model and thereby of everything. */
  nextEpoch(adapter: string | undefined): void {
    if (adapter === undefined) this.#modelEpoch++;
    else this.#adapterEpochs.set(adapter, (this.#adapterEpochs.get(adapter) ?? 0) + 1);
  }
  /** The node of a root, made if it has none. Throws RangeError when there is no memory for it. */
  plant(root: PrefixRoot): number {
    if (root.node !== 0) return root.node;
    root.node = this.#nodes.addRoot(
      rootKey([
        ["format", "heed prefix 1"],
        ["model and layout", this.#identity],
        ["model epoch", root.modelEpoch],
        ["namespace", root.namespace],
        ["adapter", root.adapter],
        ["adapter epoch", root.adapterEpoch],
      ]),
    );
    this.#byOwner.set(ownerKey(root), root);
    this.#byNode.set(root.node, root);
    return root.node;
  }
  /** Takes a root without children away. */
  uproot(node: number): void {
    const root = this.#byNode.get(node)!;
    root.node = 0;
    this.#byNode.delete(node);
    this.#byOwner.delete(ownerKey(root));
    this.#nodes.remove(node);
  }
  clear(): void {
    for (const root of this.#byOwner.values()) root.node = 0;
    this.#byOwner.clear();
    this.#byNode.clear();
  }
}
