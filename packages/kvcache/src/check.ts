import { InvariantError } from "./errors.ts";
import { type CacheState, pagesFor, type SequenceState } from "./state.ts";

function fail(why: string, details: Record<string, unknown>): never {
  throw new InvariantError(`[kvcache.check] ${why}`, details);
}
/** Checks one sequence on its own and counts its references into `references`. */
function checkSequence(cache: CacheState, state: SequenceState, references: Int32Array): void {
  const { pageIds, pageCount, length, pending, tokenIds, step, released } = state;
  const { pageSize } = cache.layout;
  if (state.cache !== cache || released) {
    fail("a sequence that was released, or of another cache, is listed", { released });
  }
  if (step === undefined ? pending !== 0 : !cache.steps.has(step)) {
    fail("a sequence is in a step that is not open", { length, pending });
  }
  if (pageCount !== pagesFor(length + pending, pageSize)) {
    fail(`a sequence of ${length} tokens and ${pending} pending ones has ${pageCount} pages of ${pageSize}`, {
      length,
      pending,
      pageCount,
      pageSize,
    });
  }
  if (tokenIds !== undefined && tokenIds.length < length) {
    fail(`a sequence of ${length} tokens keeps ${tokenIds.length} ids`, { length, ids: tokenIds.length });
  }
  for (let i = 0; i < pageCount; i++) {
    const page = pageIds[i]!;
    if (page < 1 || page > cache.pool.count)
      fail(`a sequence lists page ${page} at ${i}`, { page, at: i, total: cache.pool.count });
    references[page]!++;
  }
}
/** No page that the next rows go to (the partial tail, and all above it) belongs to anybody else. */
function checkWritable(cache: CacheState, state: SequenceState, references: Int32Array): void {
  for (let i = Math.floor(state.length / cache.layout.pageSize); i < state.pageCount; i++) {
    const page = state.pageIds[i]!;
    if (references[page] !== 1)
      fail(`page ${page} is writable by ${references[page]} sequences`, {
        page,
        references: references[page],
      });
  }
}
/**
 * Walks every invariant in O(pages + sequences): pages in use and free make the total, each is free exactly once or referred to as
 * often as the pool says, none is writable by two sequences, lengths fit the pages. Throws InvariantError on the first that fails.
 */
export function checkCache(cache: CacheState): void {
  const references = new Int32Array(cache.pool.count + 1);
  let tokens = 0;
  for (const state of cache.sequences) {
    checkSequence(cache, state, references);
    tokens += state.length;
  }
  cache.pool.check(references);
  for (const state of cache.sequences) checkWritable(cache, state, references);
  if (tokens !== cache.tokens)
    fail(`sequences hold ${tokens} tokens, but ${cache.tokens} are counted`, {
      tokens,
      counted: cache.tokens,
    });
}
