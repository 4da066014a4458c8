/** Everything a cache can do, in any order, beside a model of it; see stateful/. */
import { memoryUsage } from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { engines } from "./engines.ts";
import { Coverage } from "./stateful/checks.ts";
import { type Command, MAX_FAULT, MAX_IDS, MAX_WHO, NO_FAULT, OPS, SETUPS } from "./stateful/commands.ts";
import { step } from "./stateful/run.ts";
import { World } from "./stateful/world.ts";

const commands: fc.Arbitrary<Command[]> = fc.array(
  fc.record({
    op: fc.constantFrom(...OPS),
    who: fc.nat({ max: MAX_WHO }),
    ids: fc.array(fc.nat({ max: 1 }), { minLength: 1, maxLength: MAX_IDS, size: "max" }),
    fault: fc.integer({ min: 1, max: MAX_FAULT }).map((n) => (n < NO_FAULT ? n : MAX_FAULT)),
  }),
  { minLength: 1, maxLength: 60, size: "max" },
);
const RUNS = 1000;
/** What must have come to pass in that many runs, at least; about a third of what mostly does. */
const LEAST = {
  commits: 1500,
  hits: 250,
  "partial hits": 150,
  hitBlocks: 900,
  "copies on write": 90,
  evictedPages: 150,
  refusedBlocks: 50,
  forks: 200,
  truncations: 100,
  releases: 700,
  "cancelled steps": 120,
  "positions behind a window": 30_000,
  "refusals for lack of pages": 100,
  "engine faults": 100,
  "file faults": 1,
  fences: 30,
  "swapped out": 100,
  "swapped in": 15,
  "released on their way": 50,
  "damaged entries": 1,
  saves: 40,
  loads: 8,
  "damaged files": 10,
  "saves of prefixes": 40,
  "damaged indexes": 10,
  "blocks loaded": 1,
  resets: 60,
  "rows of encoded pages": 30_000,
  "commits that failed": 5,
} as const;

test.each(engines)(
  "whatever is done on %s, every sequence has the rows of its ids and the books hold",
  async (engine) => {
    const folder = await mkdtemp(join(tmpdir(), "heed-"));
    const before = memoryUsage();
    const coverage = new Coverage();
    let n = 0;
    try {
      await fc.assert(
        fc.asyncProperty(fc.nat({ max: SETUPS.length - 1 }), commands, async (setup, trace) => {
          await using world = new World(setup, engine, join(folder, `${n++}`), coverage);
          for (const command of trace) await step(world, command);
        }),
        { numRuns: RUNS },
      );
    } finally {
      await rm(folder, { recursive: true });
    }
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
    for (const [what, least] of Object.entries(LEAST))
      expect([what, coverage.counts.get(what) ?? 0, ">=", least]).toSatisfy(
        ([, n]) => (n as number) >= least,
      );
  },
  120_000,
);
