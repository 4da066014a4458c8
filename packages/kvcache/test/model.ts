/**
 * What a cache of several groups does, written down as plainly as it goes: lists of ids, lists of pages, counts. A step's pages come off
 * the front of a group's free list; a page that nobody refers to or fences goes to its end.
 */
import type { GroupLayout } from "../src/index.ts";

export interface ModelSequence {
  ids: number[];
  /** Per group, the pages by position; 0 where they went back behind the window. */
  pages: number[][];
  step: ModelStep | undefined;
}
export interface ModelStep {
  readonly entries: readonly { readonly sequence: ModelSequence; readonly tokens: number }[];
  readonly ids: number[];
  readonly written: Set<number>;
  /** Pages taken, per group, in order; and the tails for which copies stand. */
  readonly taken: readonly number[][];
  readonly replaced: readonly { group: number; sequence: ModelSequence; page: number }[];
}
export interface ModelFence {
  readonly pages: readonly ReadonlySet<number>[];
}
type Wanted = readonly (readonly [ModelSequence, number])[];

/** The reference. `groups` and `margin` are what the cache was built with. */
export class Model {
  readonly groups: readonly GroupLayout[];
  readonly margin: number;
  readonly free: number[][];
  readonly references: number[][];
  readonly fenced: number[][];
  readonly sequences: ModelSequence[] = [];
  readonly steps: ModelStep[] = [];
  readonly fences: ModelFence[] = [];
  /** Sequences whose tail page holds rows that a fence may cover beyond their end, per group. */
  readonly guarded: Set<ModelSequence>[];
  nextId = 0;
  constructor(groups: readonly GroupLayout[], margin: number, counts: readonly number[]) {
    this.groups = groups;
    this.margin = margin;
    this.free = counts.map((n) => Array.from({ length: n }, (_, i) => i + 1));
    this.references = counts.map((n) => new Array<number>(n + 1).fill(0));
    this.fenced = counts.map((n) => new Array<number>(n + 1).fill(0));
    this.guarded = groups.map(() => new Set());
  }
  open(): ModelSequence {
    const sequence = { ids: [], pages: this.groups.map((): number[] => []), step: undefined };
    this.sequences.push(sequence);
    return sequence;
  }
  /** Whether it refers to each page of a group, by the recount of sequences and of tails that steps hold. */
  recount(group: number): number[] {
    const count = this.references[group]!.map(() => 0);
    for (const s of this.sequences) for (const page of s.pages[group]!) if (page > 0) count[page]!++;
    for (const s of this.steps) for (const r of s.replaced) if (r.group === group) count[r.page]!++;
    return count;
  }
  #release(group: number, page: number): void {
    if (page === 0 || --this.references[group]![page]! > 0 || this.fenced[group]![page]! > 0) return;
    this.free[group]!.push(page);
  }
  #pagesFor(group: number, tokens: number): number {
    return Math.ceil(tokens / this.groups[group]!.pageSize);
  }
  /** The sequences of a step that may not write to their last page. */
  #copies(group: number, wanted: Wanted): Set<ModelSequence> {
    const { pageSize } = this.groups[group]!;
    const adds = wanted.filter(([s, tokens]) => tokens > 0 && s.ids.length % pageSize > 0);
    const tails = adds.map(([sequence]) => ({ sequence, page: sequence.pages[group]!.at(-1)! }));
    const mustNot = ({ sequence, page }: (typeof tails)[number]): boolean =>
      this.guarded[group]!.has(sequence) && this.fenced[group]![page]! > 0;
    const copies = new Set<ModelSequence>();
    for (const { sequence, page } of tails) {
      const sharers = tails.filter((t) => t.page === page);
      const all = sharers.length === this.references[group]![page]! && !sharers.some(mustNot);
      const longest = sharers.reduce((a, b) => (b.sequence.ids.length > a.sequence.ids.length ? b : a));
      if (!all || longest.sequence !== sequence) copies.add(sequence);
    }
    return copies;
  }
  /** Pages that a step needs of each group. */
  needs(wanted: Wanted): number[] {
    return this.groups.map((_, g) =>
      wanted.reduce(
        (sum, [s, tokens]) => sum + this.#pagesFor(g, s.ids.length + tokens) - s.pages[g]!.length,
        this.#copies(g, wanted).size,
      ),
    );
  }
  begin(wanted: Wanted): ModelStep {
    const replaced: { group: number; sequence: ModelSequence; page: number }[] = [];
    const taken = this.groups.map((_, group) => {
      const copies = this.#copies(group, wanted);
      const list: number[] = [];
      const take = (): number => {
        const page = this.free[group]!.shift()!;
        this.references[group]![page] = 1;
        list.push(page);
        return page;
      };
      for (const sequence of copies) {
        const pages = sequence.pages[group]!;
        replaced.push({ group, sequence, page: pages.pop()! });
        pages.push(take());
      }
      for (const [sequence, tokens] of wanted) {
        const pages = sequence.pages[group]!;
        while (pages.length < this.#pagesFor(group, sequence.ids.length + tokens)) pages.push(take());
      }
      return list;
    });
    const entries = wanted.map(([sequence, tokens]) => ({ sequence, tokens }));
    const ids = entries.flatMap(({ tokens }) => Array.from({ length: tokens }, () => this.nextId++));
    const step: ModelStep = { entries, ids, written: new Set(), taken, replaced };
    for (const { sequence } of entries) sequence.step = step;
    this.steps.push(step);
    return step;
  }
  commit(step: ModelStep): void {
    let at = 0;
    this.#end(step);
    for (const { group, sequence, page } of step.replaced) {
      this.#release(group, page);
      this.guarded[group]!.delete(sequence);
    }
    for (const { sequence, tokens } of step.entries) {
      sequence.ids.push(...step.ids.slice(at, (at += tokens)));
      if (tokens > 0) this.groups.forEach((_, group) => this.#slide(group, sequence));
    }
  }
  #slide(group: number, { ids, pages }: ModelSequence): void {
    const { pageSize, window, sinks } = this.groups[group]!;
    const first = ids.length - this.margin - window + 1; // the first position that a query to come sees
    for (let i = pages[group]!.length - 1; i >= 0; i--) {
      if (i * pageSize < sinks || (i + 1) * pageSize > first) continue;
      this.#release(group, pages[group]![i]!);
      pages[group]![i] = 0;
    }
  }
  cancel(step: ModelStep): void {
    this.#end(step);
    this.groups.forEach((_, group) => {
      for (const { sequence } of step.entries) {
        sequence.pages[group]!.length = this.#pagesFor(group, sequence.ids.length);
      }
      for (const page of step.taken[group]!.toReversed()) {
        this.references[group]![page] = 0;
        if (this.fenced[group]![page] === 0) this.free[group]!.unshift(page);
      }
    });
    for (const { group, sequence, page } of step.replaced) sequence.pages[group]!.splice(-1, 1, page);
    for (const { sequence, tokens } of step.entries) if (tokens > 0) this.#guard(sequence);
  }
  #end(step: ModelStep): void {
    for (const { sequence } of step.entries) sequence.step = undefined;
    this.steps.splice(this.steps.indexOf(step), 1);
  }
  /** Rows beyond the end of a fenced tail may be read: they are not to be written over. */
  #guard(sequence: ModelSequence): void {
    this.groups.forEach(({ pageSize }, g) => {
      const page = sequence.pages[g]!.at(-1) ?? 0;
      const guarded = sequence.ids.length % pageSize > 0 && this.fenced[g]![page]! > 0;
      if (guarded) this.guarded[g]!.add(sequence);
      else this.guarded[g]!.delete(sequence);
    });
  }
  /** Whether all that a query at `length` sees, and the row before it, is there. */
  canTruncate(sequence: ModelSequence, length: number): boolean {
    return this.groups.every(({ window, pageSize }, g) => {
      for (let j = Math.max(0, length - Math.max(2, window) + 1); j < length; j++)
        if (sequence.pages[g]![Math.floor(j / pageSize)] === 0) return false;
      return true;
    });
  }
  truncate(sequence: ModelSequence, length: number): void {
    sequence.ids.length = length;
    this.groups.forEach((_, g) => {
      const pages = sequence.pages[g]!;
      while (pages.length > this.#pagesFor(g, length)) this.#release(g, pages.pop()!);
    });
    this.#guard(sequence);
  }
  fork(sequence: ModelSequence): ModelSequence {
    const fork = {
      ids: sequence.ids.slice(),
      pages: sequence.pages.map((list) => list.slice()),
      step: undefined,
    };
    fork.pages.forEach((list, g) => {
      for (const page of list) if (page > 0) this.references[g]![page]!++;
      if (this.guarded[g]!.has(sequence)) this.guarded[g]!.add(fork);
    });
    this.sequences.push(fork);
    return fork;
  }
  release(sequence: ModelSequence): void {
    if (sequence.step !== undefined) this.cancel(sequence.step);
    this.truncate(sequence, 0);
    this.sequences.splice(this.sequences.indexOf(sequence), 1);
  }
  fence(sequences: readonly ModelSequence[]): ModelFence {
    const pages = this.groups.map((_, g) => {
      const all = new Set<number>();
      for (const { pages: lists, step } of sequences) {
        for (const page of lists[g]!) all.add(page);
        for (const r of step?.replaced ?? []) if (r.group === g) all.add(r.page);
      }
      all.delete(0);
      for (const page of all) this.fenced[g]![page]!++;
      return all;
    });
    const fence = { pages };
    this.fences.push(fence);
    return fence;
  }
  lift(fence: ModelFence): void {
    this.fences.splice(this.fences.indexOf(fence), 1);
    fence.pages.forEach((pages, g) => {
      for (const page of [...pages].toReversed()) {
        if (--this.fenced[g]![page]! === 0 && this.references[g]![page] === 0) this.free[g]!.push(page);
      }
    });
  }
}
