import { KvCache, type StepRequest } from "@heed/kvcache";
import { OutOfMemoryError } from "@heed/tensor";
import { Arrivals } from "./arrivals.ts";
import { Census, type Served } from "./contiguous.ts";
import { MAX_SEQUENCES, MAX_STEP_TOKENS } from "./limits.ts";
import { arrived, Running, type Waiting } from "./running.ts";
import { type Sample, sampleOf } from "./samples.ts";
import type { Workload } from "./workload.ts";

export interface PagedOptions {
  readonly pages: number;
  readonly pageSize: number;
  /** Steps between calls of `cache.check()`; never when 0. Default 256. */
  readonly checkEvery?: number | undefined;
  /** Steps between samples; default 8. */
  readonly sampleEvery?: number | undefined;
}
/** What became of a load in the paged cache. */
export interface PagedRun extends Served {
  /** Tokens of prompts, and those of them that were found published, at first admissions. */
  readonly promptTokens: number;
  readonly foundTokens: number;
  /** Tokens of all steps, and those of them that had been computed before, when a request was put off. */
  readonly tokens: number;
  readonly repeatedTokens: number;
  readonly putOff: number;
  readonly evictedPages: number;
  readonly samples: readonly Sample[];
  /** Milliseconds in calls of the cache. */
  readonly bookkeepingMs: number;
}

/** Serves the load on a cache whose rows are single numbers, all written at once: what is left is bookkeeping. */
export function servePaged(load: Workload, options: PagedOptions): PagedRun {
  const { pages: maxPages, pageSize } = options;
  using cache = new KvCache({
    layers: 1,
    numKvHeads: 1,
    headDim: 1,
    valuesInKeys: true,
    pageSize,
    maxPages,
    prefixes: true,
  });
  return new Server(cache, load, options).run();
}

const GROWTH = 16; // sequences for each page that is kept back: with pages of 64 they take it within 4 steps

class Server {
  readonly #cache: KvCache;
  readonly #arrivals: Arrivals;
  readonly #checkEvery: number;
  readonly #sampleEvery: number;
  readonly #pageSize: number;
  readonly #waiting: Waiting[] = [];
  readonly #running: Running[] = [];
  readonly #census = new Census();
  readonly #samples: Sample[] = [];
  readonly #counts = { promptTokens: 0, foundTokens: 0, tokens: 0, repeatedTokens: 0, putOff: 0 };
  readonly #putOff = new WeakSet<Waiting>();
  #bookkeepingMs = 0;
  constructor(cache: KvCache, load: Workload, { pageSize, checkEvery = 256, sampleEvery = 8 }: PagedOptions) {
    this.#cache = cache;
    this.#arrivals = new Arrivals(load);
    this.#pageSize = pageSize;
    this.#checkEvery = checkEvery;
    this.#sampleEvery = sampleEvery;
  }
  run(): PagedRun {
    for (let step = 0; this.#arrivals.isOpen; step++) {
      this.#waiting.push(...this.#arrivals.at(step).map(arrived));
      this.#admit();
      this.#census.add(this.#sequences, this.#waiting.length > 0);
      this.#step();
      this.#settle(step);
      if (this.#checkEvery > 0 && step % this.#checkEvery === 0) this.#cache.check();
      if (step % this.#sampleEvery === 0)
        this.#samples.push(sampleOf(step, this.#cache.stats(), this.#counts));
    }
    this.#cache.check();
    return {
      ...this.#census.served,
      ...this.#counts,
      evictedPages: this.#cache.stats().prefixes!.evictedPages,
      samples: this.#samples,
      bookkeepingMs: this.#bookkeepingMs,
    };
  }
  get #sequences(): number {
    return this.#running.reduce((sum, { request }) => sum + request.width, 0);
  }
  /** Lets requests in, first come, first served, while there are pages for their prompts. */
  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      if (this.#sequences + next.request.width > MAX_SEQUENCES || !this.#tryAdmit(next)) return;
      this.#waiting.shift();
    }
  }
  #tryAdmit(next: Waiting): boolean {
    const isAlone = this.#running.length === 0;
    if (!isAlone && this.#room() <= next.request.width) return false;
    using match = this.#timed(() => this.#cache.match(next.ids));
    const found = match.length;
    const wanted = this.#pagesOf(next.ids.length - found) + next.request.width;
    if (!isAlone && wanted > this.#room()) return false; // what was cached is pinned now
    this.#running.push(this.#timed(() => new Running(this.#cache, next, match)));
    if (this.#putOff.has(next)) this.#counts.repeatedTokens -= found;
    else {
      this.#counts.promptTokens += next.ids.length;
      this.#counts.foundTokens += found;
    }
    return true;
  }
  #pagesOf(tokens: number): number {
    return Math.ceil(tokens / this.#pageSize);
  }
  /** Pages that are nobody's, but for those that prompts under way will take, and some for sequences to grow into. */
  #room(): number {
    const { freePages, cachedPages } = this.#cache.stats();
    let promised = this.#sequences / GROWTH;
    for (const { left } of this.#running) promised += this.#pagesOf(left);
    return freePages + cachedPages - promised;
  }
  /** Reserves, writes and commits a step; while pages do not suffice the youngest request is put off. */
  #step(): void {
    for (;;) {
      const { requests, ids } = this.#plan();
      if (requests.length === 0) return;
      try {
        this.#timed(() => {
          const step = this.#cache.reserve(requests);
          step.markWritten();
          step.commit(ids);
        });
        this.#counts.tokens += ids.length;
        return;
      } catch (error) {
        if (!(error instanceof OutOfMemoryError) || this.#running.length === 1) throw error;
        this.#putOffYoungest();
      }
    }
  }
  #putOffYoungest(): void {
    const youngest = this.#running.pop()!;
    const { length, sequences } = youngest;
    const waiting = this.#timed(() => youngest.putOff());
    this.#counts.putOff++;
    this.#counts.repeatedTokens +=
      length + (sequences.length - 1) * Math.max(0, length - youngest.request.prompt);
    this.#putOff.add(waiting);
    this.#waiting.unshift(waiting);
  }
  /** A token for every sequence whose prompt is done, and as much of the prompts as there is room for beside them. */
  #plan(): { requests: StepRequest[]; ids: number[] } {
    const requests: StepRequest[] = [];
    const ids: number[] = [];
    const add = (one: Running, branch: number, tokens: number): void => {
      requests.push({ sequence: one.sequences[branch]!, tokens });
      for (let t = 0; t < tokens; t++) ids.push(one.idAt(branch, t));
    };
    for (const one of this.#running) {
      if (one.left === 0) one.sequences.forEach((_, branch) => add(one, branch, 1));
    }
    let room = MAX_STEP_TOKENS - ids.length;
    for (const one of this.#running) {
      const tokens = Math.min(room, one.left);
      if (tokens > 0) add(one, 0, tokens);
      room -= tokens;
    }
    return { requests, ids };
  }
  /** After a step: forks what is to be forked and lets go of what has been answered. */
  #settle(step: number): void {
    this.#timed(() => {
      for (let i = this.#running.length - 1; i >= 0; i--) {
        const one = this.#running[i]!;
        if (!one.isAnswered) {
          one.branch();
          continue;
        }
        one.release();
        this.#running.splice(i, 1);
        this.#arrivals.answered(one.request, step);
      }
    });
  }
  #timed<T>(call: () => T): T {
    const start = performance.now();
    try {
      return call();
    } finally {
      this.#bookkeepingMs += performance.now() - start;
    }
  }
}
