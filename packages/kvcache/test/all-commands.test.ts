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
const RUNS = 600; // the soak does more
/** What must have come to pass in that many runs, at least: about a third of what mostly does, less where that is some dozen times. */
const LEAST = {
  commits: 900,
  hits: 150,
  "partial hits": 90,
  hitBlocks: 540,
  "copies on write": 54,
  evictedPages: 90,
  refusedBlocks: 30,
  forks: 120,
  truncations: 60,
  releases: 420,
  "cancelled steps": 72,
  "positions behind a window": 18_000,
  "refusals for lack of pages": 60,
  "engine faults": 60,
  "file faults": 1,
  fences: 18,
  "swapped out": 60,
  "swapped in": 9,
  "released on their way": 30,
  "damaged entries": 1,
  saves: 24,
  loads: 1,
  "damaged files": 1,
  "saves of prefixes": 24,
  "damaged indexes": 2,
  resets: 36,
  "rows of encoded pages": 18_000,
  "commits that failed": 1,
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
