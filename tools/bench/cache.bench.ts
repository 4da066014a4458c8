import { BlockPool, KvCache, type Sequence } from "@heed/kvcache";
import type { BenchEngine } from "./engine.ts";
import type { Bench, Subject, Target } from "./harness.ts";
import { uniform } from "./random.ts";

const SEQUENCES = 256;
const LENGTH = 4096;
const ROOM = 2048; // tokens that a sequence grows by before it is cut back to LENGTH

/** What bookkeeping of the cache takes: its rows are single numbers, so that nothing else takes time. */
export function cacheBenches({ engine }: BenchEngine): readonly Bench[] {
  const make = (options: Pages): KvCache =>
    new KvCache({ engine, layers: 1, numKvHeads: 1, headDim: 1, valuesInKeys: true, ...options });
  return [
    ...poolBenches(),
    ...[16, 64, 256].map((pageSize) => lookupBench(make, pageSize)),
    ...[16, 64, 256].map((pageSize) => publishBench(make, pageSize)),
    ...[16, 64, 256].flatMap((pageSize) => [true, false].map((isNew) => tableBench(make, pageSize, isNew))),
    ...[16, 64, 256].map((pageSize) => stepBench(make, pageSize, false)),
    stepBench(make, 64, true),
    forkBench(make),
  ];
}

interface Pages {
  readonly pageSize: number;
  readonly maxPages: number;
  readonly prefixes?: boolean;
}
type Make = (options: Pages) => KvCache;

/** A bench of `count` calls a run. */
function bench(
  name: string,
  [count, unit]: readonly [number, string],
  open: () => Subject,
  target?: Target,
): Bench {
  const work = { bound: "calls", count, unit } as const;
  return { name: `cache ${name}`, dtype: "", shape: {}, work, open, ...(target && { target }) };
}
function subject(cache: Disposable | undefined, run: () => unknown): Subject {
  return { run, [Symbol.dispose]: () => cache?.[Symbol.dispose]() };
}

/** Pages taken and given back in a pool that is in use: free ones, and ones that hold a prefix which is evicted. */
function poolBenches(): Bench[] {
  const held = 1024;
  const open = (isCached: boolean) => () => {
    const pool = new BlockPool(4 * held);
    const pages = new Int32Array(held);
    return subject(undefined, () => {
      for (let i = 0; i < held; i++) {
        pages[i] = pool.take();
        if (isCached) pool.setContent(pages[i]!, 1);
      }
      for (let i = held - 1; i >= 0; i--) pool.release(pages[i]!);
    });
  };
  return [
    bench("page taken and released", [held, "page"], open(false), { mostNs: 10 }),
    bench("page evicted, labelled, released", [held, "page"], open(true)),
  ];
}

/** Token ids of conversation `n`. */
function idsOf(n: number, length: number): Int32Array {
  return Int32Array.from(uniform(length, n + 1), (u) => (u + 1) * 16000);
}
/** A committed sequence of these ids, or of so many tokens whose ids nobody knows. */
function fill(cache: KvCache, ids: Int32Array | number): Sequence {
  const sequence = cache.open();
  const step = cache.reserve([{ sequence, tokens: typeof ids === "number" ? ids : ids.length }]);
  step.markWritten();
  step.commit(typeof ids === "number" ? undefined : ids);
  return sequence;
}

/** A prompt of which all blocks but the last are published, among those of other conversations. */
function lookupBench(make: Make, pageSize: number): Bench {
  const conversations = 16;
  const blocks = LENGTH / pageSize - 1;
  const open = (): Subject => {
    const cache = make({ pageSize, maxPages: (conversations * LENGTH) / pageSize, prefixes: true });
    const prompts = Array.from({ length: conversations }, (_, n) => idsOf(n, LENGTH));
    for (const ids of prompts) fill(cache, ids).release();
    let n = 0;
    return subject(cache, () => {
      using match = cache.match(prompts[n++ % conversations]!);
      if (match.length !== blocks * pageSize) throw new Error(`found ${match.length} tokens`);
    });
  };
  return bench(
    `lookup, ${blocks} blocks of ${pageSize}`,
    [blocks, "block"],
    open,
    pageSize <= 64 ? { mostNs: 250 } : undefined,
  );
}

/** A prompt that nobody had before: reserved, committed with its ids and released, while the oldest is evicted. */
function publishBench(make: Make, pageSize: number): Bench {
  const blocks = LENGTH / pageSize;
  const open = (): Subject => {
    const cache = make({ pageSize, maxPages: 8 * blocks, prefixes: true });
    const ids = idsOf(0, LENGTH);
    let n = 0;
    return subject(cache, () => {
      ids[0] = n++;
      fill(cache, ids).release();
    });
  };
  return bench(`prefill published, ${blocks} blocks of ${pageSize}`, [blocks, "block"], open);
}

/** The tables of 256 sequences of 4096 tokens, of which all were in the last table or none. */
function tableBench(make: Make, pageSize: number, isNew: boolean): Bench {
  const open = (): Subject => {
    const cache = make({ pageSize, maxPages: (2 * SEQUENCES * LENGTH) / pageSize });
    const requests = Array.from({ length: isNew ? 2 : 1 }, () =>
      Array.from({ length: SEQUENCES }, () => ({ sequence: fill(cache, LENGTH), tokens: 0 })),
    );
    let n = 0;
    return subject(cache, () => cache.reserve(requests[n++ % requests.length]!).cancel());
  };
  const which = isNew ? "all new" : "as before";
  return bench(`tables ${SEQUENCES} x ${LENGTH}, pages of ${pageSize}, ${which}`, [1, "step"], open);
}

/** A decode step of 256 sequences, whose pages fill up at different times, with or without ids to be published. */
function stepBench(make: Make, pageSize: number, isPublished: boolean): Bench {
  const open = (): Subject => {
    const perSequence = (LENGTH + ROOM) / pageSize + 1;
    const cache = make({ pageSize, maxPages: SEQUENCES * perSequence, prefixes: isPublished });
    const requests = Array.from({ length: SEQUENCES }, (_, n) => {
      const length = LENGTH + ((n * 37) % pageSize);
      return { sequence: fill(cache, isPublished ? idsOf(n, length) : length), tokens: 1 };
    });
    const ids = isPublished ? idsOf(SEQUENCES, SEQUENCES) : undefined;
    const lengths = requests.map(({ sequence }) => sequence.length);
    return subject(cache, () => {
      const step = cache.reserve(requests);
      step.markWritten();
      step.commit(ids);
      if (requests[0]!.sequence.length < LENGTH + ROOM - pageSize) return;
      requests.forEach(({ sequence }, n) => sequence.truncate(lengths[n]!));
    });
  };
  const name = `decode step of ${SEQUENCES}, pages of ${pageSize}${isPublished ? ", published" : ""}`;
  return bench(name, [1, "step"], open, { mostNs: 50e3 });
}

/** A fork of 4096 tokens that adds one token, by a copy of the tail page, and goes. */
function forkBench(make: Make): Bench {
  const open = (): Subject => {
    const cache = make({ pageSize: 64, maxPages: LENGTH / 64 + 4 });
    const sequence = fill(cache, LENGTH + 32);
    return subject(cache, () => {
      const [fork] = sequence.fork() as [Sequence];
      const step = cache.reserve([{ sequence: fork, tokens: 1 }]);
      step.markWritten();
      step.commit();
      fork.release();
    });
  };
  return bench(`fork of ${LENGTH}, a token, release`, [1, "fork"], open);
}
