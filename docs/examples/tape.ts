// A decode step recorded once and replayed at new positions, without planning or allocation.
import "./engine.ts";
import { GroupedQueryAttention } from "@heed/attention";
import { KvCache } from "@heed/kvcache";
import { copyInto, getEngine, randn, recordTape, scope } from "@heed/tensor";

const engine = getEngine();
using layer = GroupedQueryAttention.create({ hiddenSize: 64, numHeads: 4, numKvHeads: 2, rope: {}, engine });
using cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 16, maxPages: 16, engine });
// The steps of a tape have their table at one place in memory.
using table = cache.fixedTable({ sequences: 1 });
const requests = [{ sequence: cache.open(), tokens: 1 }];
using x = randn([1, 1, 64], { engine });

// The rotation's tables grow with positions, a tape's do not: make them for all positions to come.
layer.forward(x, { positions: 1000 })[Symbol.dispose]();

const first = cache.reserve(requests, { table });
const { outputs, tape } = recordTape(engine, () => layer.forward(x, { cache: first }));
first.commit();
for (const { name, kind, operands } of tape.instructions.slice(0, 2))
  console.log(name, kind, operands.map((o) => `${o.name} ${o.dtype}[${o.shape.join(", ")}]`).join(", "));
console.log(`${tape.instructions.length} instructions, ${tape.bytes} bytes`);

let equal = true;
for (let t = 1; t < 20; t++) {
  scope(() => copyInto(randn([1, 1, 64], { engine, seed: t }), x));
  using step = cache.reserve(requests, { table });
  tape.replay(); // writes the rows of this token, attends, and leaves the result in `outputs`
  step.markWritten();
  using plain = layer.forward(x, { cache: step });
  const [a, b] = [await outputs.read(), await plain.read()];
  equal &&= a.every((value, i) => Object.is(value, b[i]));
  step.commit();
}
console.log(`20 tokens, the same bits as plain calls: ${equal}`);
