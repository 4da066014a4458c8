/** Decodes steps of four sequences, in a process of its own, and prints what memory it held after each 10,000 as JSON. */
import "@heed/engine-cpu";
import { memoryUsage, pagedAttention, randn, scope } from "@heed/tensor";
import { KvCache } from "../../src/index.ts";

const engine = process.argv[2] ?? "portable";
const [STEPS, N, LIMIT] = [10_000, 4, 24];
using cache = new KvCache({ layers: 1, numKvHeads: 1, headDim: 4, pageSize: 4, maxPages: 40, engine });
const sequences = Array.from({ length: N }, () => cache.open());
using q = randn([N, 2, 4], { engine });
using rows = randn([N, 1, 4], { engine });

function decode(i: number): void {
  for (const sequence of sequences) if (sequence.length >= LIMIT) sequence.truncate(3);
  using step = cache.reserve(sequences.map((sequence) => ({ sequence, tokens: 1 })));
  step.write(0, rows, rows);
  const view = step.view(0);
  if (i % 50 === 0) scope(() => void pagedAttention(q, view)); // it takes a millisecond in TypeScript
  step.commit(new Int32Array(N));
}
function held(): { rss: number; bytes: number; storages: number } {
  Bun.gc(true);
  const { bytes, storages } = memoryUsage();
  return { rss: process.memoryUsage.rss(), bytes, storages };
}

/** What is held after 10,000 more steps. */
function after(): ReturnType<typeof held> {
  for (let i = 0; i < STEPS; i++) decode(i);
  return held();
}
after(); // code is compiled and heaps find their size
const marks = [held(), after(), after(), after()];
cache.check();
console.log(JSON.stringify({ marks, stats: cache.stats() }));
