import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { availableIsas, floorReason } from "@heed/engine-cpu";
import { findVectors } from "@heed/testkit";

const folder = findVectors(import.meta.dir);
const tool = join(import.meta.dir, "..", "main.ts");

interface Outcome {
  readonly engine: { readonly name: string; readonly description: string };
  readonly failed: number;
  readonly sets: readonly {
    readonly set: string;
    readonly passed: number;
    readonly cases: readonly { readonly name: string; readonly status: string; readonly reason?: string }[];
  }[];
}

/** Runs all vectors in a process of its own: an instruction set is chosen once at load, and a crash is a failure here. */
function run(vectors: string, engine: string, isa?: string): Outcome {
  const env = { ...process.env, ...(isa !== undefined && { HEED_CPU_TARGET: isa }) };
  const { stdout, stderr, signalCode } = Bun.spawnSync(
    [process.execPath, tool, vectors, "--engine", engine, "--json"],
    { env },
  );
  if (signalCode) throw new Error(`ended by ${signalCode}: ${stderr.toString()}`);
  if (stdout.length === 0) throw new Error(stderr.toString());
  return JSON.parse(stdout.toString()) as Outcome;
}

function expectAll(outcome: Outcome): void {
  const failures = outcome.sets.flatMap(({ set, cases }) =>
    cases.filter(({ status }) => status === "failed").map(({ name, reason }) => `${set}/${name}: ${reason}`),
  );
  expect(failures).toEqual([]);
  // Nothing is lost on the way: a set that shrank would otherwise pass.
  expect(Object.fromEntries(outcome.sets.map(({ set, cases }) => [set, cases.length]))).toEqual({
    "models/models": 10,
    "onnx/attention": 87,
    "onnx/rms_normalization": 19,
    "onnx/rotary_embedding": 8,
    "sdpa/sdpa": 13,
  });
}

if (folder === undefined) {
  test.skip("all sets on all engines: no shared/conformance beside this checkout", () => {});
} else {
  describe("all sets pass", () => {
    test("on the portable engine", () => expectAll(run(folder, "portable")));
    if (floorReason.startsWith("native")) {
      for (const isa of availableIsas()) {
        test(`on the cpu engine with ${isa}`, () => {
          const outcome = run(folder, "cpu", isa);
          expect(outcome.engine.description).toContain(isa);
          expectAll(outcome);
        });
      }
    } else {
      test.skip(`on the cpu engine: ${floorReason}`, () => {});
    }
  });
}
