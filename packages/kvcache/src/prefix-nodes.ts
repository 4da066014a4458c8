import { InvariantError } from "./errors.ts";
import { ChainHasher, KEY_BYTES } from "./prefix-keys.ts";

const START = 64; // nodes for which there is room at first

/**
 * The nodes of the prefix trees: a node is a block of tokens behind its parent, with a 256-bit key and the pages that hold it, and its
 * number is its place in the arrays here. Number 0 is nobody; roots are nodes without tokens. A child is found by a 32-bit hash of its
 * parent's number and its tokens in a table with open addressing; a hit compares parent and tokens, so the hash decides nothing but
 * speed: with 64 tokens it costs a fifth of the key's 240 ns. It is seeded, so that nobody outside can choose tokens that collide.
 */
export class PrefixNodes {
  readonly blockTokens: number;
  /** Pages of a node in all groups together; group g's begin at pageStart[g]. */
  readonly pagesPerNode: number;
  readonly pageStart: Int32Array; // [groups + 1]
  parent: Int32Array = new Int32Array(START);
  /** The root above the node; its own number in a root. */
  root: Int32Array = new Int32Array(START);
  firstChild: Int32Array = new Int32Array(START);
  nextSibling: Int32Array = new Int32Array(START);
  previousSibling: Int32Array = new Int32Array(START);
  /** Blocks from the root on, the node included. */
  depth: Int32Array = new Int32Array(START);
  /** A number that no other node ever had: the node that somebody remembers may have gone, and its number been given again. */
  serial: Float64Array = new Float64Array(START);
  tokens: Int32Array;
  pages: Int32Array;
  #keys = new Uint8Array(START * KEY_BYTES);
  #table = new Int32Array(2 * START); // node numbers, 0 where empty
  readonly #hasher: ChainHasher;
  readonly #hashMask: number;
  readonly #seed: number;
  readonly #idle: number[] = []; // numbers below #end that no node has
  #end = 1; // first number that no node ever had
  #serials = 0;
  #count = 0; // nodes with tokens, all of which are in the table
  /** `hashBits` below 32 makes hashes collide, for tests. */
  constructor(blockTokens: number, pagesPerBlock: readonly number[], hashBits = 32) {
    this.blockTokens = blockTokens;
    this.pageStart = new Int32Array(pagesPerBlock.length + 1);
    pagesPerBlock.forEach((n, g) => (this.pageStart[g + 1] = this.pageStart[g]! + n));
    this.pagesPerNode = this.pageStart[pagesPerBlock.length]!;
    this.tokens = new Int32Array(START * blockTokens);
    this.pages = new Int32Array(START * this.pagesPerNode);
    this.#hasher = new ChainHasher(blockTokens);
    this.#hashMask = hashBits >= 32 ? -1 : 2 ** hashBits - 1;
    this.#seed = crypto.getRandomValues(new Int32Array(1))[0]!;
  }
  /** Nodes with tokens. */
  get count(): number {
    return this.#count;
  }
  /** The node's key, a view that the next node may move. */
  key(node: number): Uint8Array<ArrayBuffer> {
    return this.#keys.subarray(node * KEY_BYTES, (node + 1) * KEY_BYTES);
  }
  /** The node's tokens, a view that the next node may move. */
  tokensOf(node: number): Int32Array {
    return this.tokens.subarray(node * this.blockTokens, (node + 1) * this.blockTokens);
  }
  /** A new root. Throws RangeError when there is no memory for it; then nothing has changed. */
  addRoot(key: Uint8Array): number {
    const node = this.#take();
    this.#keys.set(key, node * KEY_BYTES);
    this.root[node] = node;
    return node;
  }
  /** A new node behind `parent` for the block of ids from `at` on, without pages. Throws RangeError as {@link addRoot} does. */
  add(parent: number, ids: ArrayLike<number>, at: number): number {
    const node = this.#take();
    const start = node * this.blockTokens;
    for (let i = 0; i < this.blockTokens; i++) this.tokens[start + i] = ids[at + i]!;
    this.#keys.set(this.#hasher.key(this.key(parent), ids, at), node * KEY_BYTES);
    this.pages.fill(0, node * this.pagesPerNode, (node + 1) * this.pagesPerNode);
    this.parent[node] = parent;
    this.root[node] = this.root[parent]!;
    this.depth[node] = this.depth[parent]! + 1;
    this.#adopt(parent, node);
    this.#table[this.#slot(parent, ids, at)] = node;
    this.#count++;
    return node;
  }
  /** The child of `parent` with the block of ids from `at` on, tokens compared; 0 when there is none. */
  find(parent: number, ids: ArrayLike<number>, at: number): number {
    return this.#table[this.#slot(parent, ids, at)]!;
  }
  /** Removes a node without children. */
  remove(node: number): void {
    if (this.firstChild[node] !== 0)
      throw new InvariantError(`[kvcache] node ${node} has children and cannot go`, { node });
    if (this.depth[node] !== 0) {
      this.#unlist(this.#slot(this.parent[node]!, this.tokens, node * this.blockTokens));
      this.#disown(node);
      this.#count--;
    }
    this.serial[node] = 0;
    this.depth[node] = 0;
    this.#idle.push(node);
  }
  /** Removes all nodes. */
  clear(): void {
    this.serial.fill(0);
    this.firstChild.fill(0);
    this.depth.fill(0);
    this.#table.fill(0);
    this.#idle.length = 0;
    this.#end = 1;
    this.#count = 0;
  }
  /** Numbers of all nodes, roots included, ascending. */
  all(): number[] {
    return Array.from({ length: this.#end }, (_, node) => node).filter((node) => this.serial[node]! > 0);
  }
  /** Throws InvariantError unless the node is found by its parent and tokens, its key follows from them, and its parent lists it. */
  check(node: number): void {
    const parent = this.parent[node]!;
    const at = node * this.blockTokens;
    const key = Buffer.from(this.#hasher.key(this.key(parent), this.tokens, at));
    let child = this.firstChild[parent]!;
    while (child !== 0 && child !== node) child = this.nextSibling[child]!;
    const fits = child === node && this.serial[parent]! > 0 && this.depth[node] === this.depth[parent]! + 1;
    if (fits && this.find(parent, this.tokens, at) === node && key.equals(this.key(node))) return;
    throw new InvariantError(
      `[kvcache] node ${node} of the prefix index does not match its parent ${parent} or its tokens`,
      {
        node,
        parent,
      },
    );
  }
  #take(): number {
    if (this.#idle.length === 0 && this.#end === this.parent.length) this.#grow();
    const node = this.#idle.pop() ?? this.#end++;
    this.serial[node] = ++this.#serials;
    this.firstChild[node] = 0;
    this.depth[node] = 0;
    return node;
  }
  /** Twice the room; the table stays at most half full. */
  #grow(): void {
    const size = 2 * this.parent.length;
    const int = (old: Int32Array, width = 1): Int32Array<ArrayBuffer> => {
      const longer = new Int32Array(size * width);
      longer.set(old);
      return longer;
    };
    const grown = {
      parent: int(this.parent),
      root: int(this.root),
      firstChild: int(this.firstChild),
      nextSibling: int(this.nextSibling),
      previousSibling: int(this.previousSibling),
      depth: int(this.depth),
      tokens: int(this.tokens, this.blockTokens),
      pages: int(this.pages, this.pagesPerNode),
      serial: new Float64Array(size),
    };
    grown.serial.set(this.serial);
    const keys = new Uint8Array(size * KEY_BYTES);
    keys.set(this.#keys);
    const table = new Int32Array(2 * size);
    Object.assign(this, grown);
    this.#keys = keys;
    const old = this.#table;
    this.#table = table;
    for (const node of old) {
      if (node !== 0) table[this.#slot(this.parent[node]!, this.tokens, node * this.blockTokens)] = node;
    }
  }
  #adopt(parent: number, node: number): void {
    const first = this.firstChild[parent]!;
    this.nextSibling[node] = first;
    this.previousSibling[node] = 0;
    if (first !== 0) this.previousSibling[first] = node;
    this.firstChild[parent] = node;
  }
  #disown(node: number): void {
    const next = this.nextSibling[node]!;
    const previous = this.previousSibling[node]!;
    if (next !== 0) this.previousSibling[next] = previous;
    if (previous !== 0) this.nextSibling[previous] = next;
    else this.firstChild[this.parent[node]!] = next;
  }
  /** Four chains of multiplications side by side: one would wait for each product. Constants: 2^32 / golden ratio, and xxHash32's. */
  #hash(parent: number, ids: ArrayLike<number>, at: number): number {
    const end = at + this.blockTokens;
    let a = this.#seed ^ Math.imul(parent, 0x9e3779b1);
    let [b, c, d] = [a + 1, a + 2, a + 3];
    let i = at;
    for (; i + 4 <= end; i += 4) {
      a = Math.imul(a ^ ids[i]!, 0x9e3779b1);
      b = Math.imul(b ^ ids[i + 1]!, 0x85ebca77);
      c = Math.imul(c ^ ids[i + 2]!, 0xc2b2ae3d);
      d = Math.imul(d ^ ids[i + 3]!, 0x27d4eb2f);
      a ^= a >>> 15;
      b ^= b >>> 15;
      c ^= c >>> 15;
      d ^= d >>> 15;
    }
    for (; i < end; i++) a = Math.imul(a ^ ids[i]!, 0x85ebca77) ^ (a >>> 15);
    let h =
      Math.imul(a ^ Math.imul(b, 0x165667b1), 0x9e3779b1) ^
      Math.imul(c ^ Math.imul(d, 0x165667b1), 0x85ebca77);
    h = Math.imul(h ^ (h >>> 15), 0x85ebca77);
    return (h ^ (h >>> 13)) & this.#hashMask;
  }
  #holds(node: number, parent: number, ids: ArrayLike<number>, at: number): boolean {
    if (this.parent[node] !== parent) return false;
    const start = node * this.blockTokens;
    for (let i = 0; i < this.blockTokens; i++) if (this.tokens[start + i] !== ids[at + i]) return false;
    return true;
  }
  /** The place of a child in the table, or the empty one where it would be. */
  #slot(parent: number, ids: ArrayLike<number>, at: number): number {
    const mask = this.#table.length - 1;
    let slot = this.#hash(parent, ids, at) & mask;
    for (let node = this.#table[slot]!; node !== 0; node = this.#table[slot]!) {
      if (this.#holds(node, parent, ids, at)) break;
      slot = (slot + 1) & mask;
    }
    return slot;
  }
  /** Empties a slot and moves later entries of its run up, so that each is found from its own place (Knuth, vol. 3, 6.4, R). */
  #unlist(hole: number): void {
    const mask = this.#table.length - 1;
    let empty = hole;
    for (let slot = (hole + 1) & mask; this.#table[slot] !== 0; slot = (slot + 1) & mask) {
      const node = this.#table[slot]!;
      const home = this.#hash(this.parent[node]!, this.tokens, node * this.blockTokens) & mask;
      if (((slot - home) & mask) < ((slot - empty) & mask)) continue;
      this.#table[empty] = node;
      empty = slot;
    }
    this.#table[empty] = 0;
  }
}
