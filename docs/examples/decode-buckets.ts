// Decoding in batches that grow and shrink, by a few recorded steps: one tape for each size of 1, 2 and 4 sequences, which a CUDA engine
// launches as a graph. A batch between two sizes is filled up with a sequence that is cut back to nothing after each step.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { type FixedTable, KvCache, type Sequence, type Step } from "@heed/kvcache";
import { copyInto, getEngine, randn, recordTape, scope, type Tape, type Tensor } from "@heed/tensor";

type F = Tensor<"float32">;
/** A step that was recorded: rows go into `x` [1, size, hidden] and come out of `outputs`; the table is filled by `reserve`. */
interface Bucket {
  readonly x: F;
  readonly table: FixedTable;
  readonly recorded: { readonly outputs: F; readonly tape: Tape };
}
const SIZES = [1, 2, 4];
const engine = getEngine();
using layer = GroupedQueryAttention.create({ hiddenSize: 64, numHeads: 4, numKvHeads: 2, rope: {}, engine });
using cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 16, pageSize: 16, maxPages: 32, engine });
layer.forward(randn([1, 1, 64], { engine }), { positions: 1000 })[Symbol.dispose](); // the rotation's tables, for all positions to come

const fillers = Array.from({ length: 4 }, () => cache.open());
const buckets = new Map<number, Bucket>();

/** `live` filled up to the next size. */
function filled(live: readonly Sequence[]): Sequence[] {
  const size = SIZES.find((n) => n >= live.length)!;
  return [...live, ...fillers.slice(0, size - live.length)];
}
function reserve(sequences: readonly Sequence[], table: FixedTable): Step {
  return cache.reserve(
    sequences.map((sequence) => ({ sequence, tokens: 1 })),
    { table },
  );
}
/** The bucket for so many sequences, recorded when it is first needed, over a step that is then given up. */
function bucketOf(sequences: readonly Sequence[]): Bucket {
  const size = sequences.length;
  const known = buckets.get(size);
  if (known !== undefined) return known;
  const x = randn([1, size, 64], { engine });
  const table = cache.fixedTable({ sequences: size });
  using step = reserve(sequences, table);
  const recorded = recordTape(engine, () => layer.forward(x, { cache: step }) as F);
  const bucket = { x, table, recorded };
  buckets.set(size, bucket);
  return bucket;
}

/** One token for each live sequence; whether the replay gave the bits of plain calls. */
async function decode(live: readonly Sequence[], seed: number): Promise<boolean> {
  const sequences = filled(live);
  const { x, table, recorded } = bucketOf(sequences);
  scope(() => copyInto(randn(x.shape, { engine, seed }), x));
  using step = reserve(sequences, table);
  recorded.tape.replay(); // writes the rows of these tokens and attends, where the table says
  step.markWritten();
  using plain = layer.forward(x, { cache: step });
  const [a, b] = [await recorded.outputs.read(), await (plain as F).read()];
  step.commit();
  for (const filler of fillers) filler.truncate(0);
  return a.every((value, i) => Object.is(value, b[i]));
}

const live: Sequence[] = [];
let [steps, equal] = [0, true];
for (const batch of [1, 3, 4, 2, 1, 3]) {
  while (live.length < batch) live.push(cache.open());
  while (live.length > batch) live.shift()!.release();
  for (let t = 0; t < 5; t++) equal = (await decode(live, steps++)) && equal;
}
cache.check();
const captured = [...buckets.values()].filter(({ recorded }) => recorded.tape.isCaptured).length;
console.log(`${steps} steps by ${buckets.size} tapes, the same bits as plain calls: ${equal}`);
console.log(`${captured} of them launched as graphs`);
