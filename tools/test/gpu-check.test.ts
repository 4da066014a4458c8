/** `bun run gpu:check`: its parts without a device, and the whole of it on the emulated one. */
import { type CudaEngine, cudaEmulated, cudaRefusal } from "@heed/engine-cuda";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArguments } from "../gpu-check/arguments.ts";
import { benchOf, peakBenches } from "../gpu-check/benches.ts";
import { countsOf, findSanitizer, sanitize } from "../gpu-check/correctness.ts";
import { type Measured, measureBench } from "../gpu-check/measure.ts";
import { type CheckContext, type Part, runParts } from "../gpu-check/parts.ts";
import { parsePeers } from "../gpu-check/peers.ts";
import { picture } from "../gpu-check/picture.ts";
import { exitCode, type Report, text } from "../gpu-check/report.ts";
import { cacheBytesOf, flopsOf, nameOf, type Shape, SHAPES, TINY_SHAPES } from "../gpu-check/shapes.ts";
import { missed } from "../gpu-check/speeds.ts";

const missing = cudaRefusal("cuda-emulated");
const main = join(import.meta.dir, "../gpu-check/main.ts");
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "heed-gpu-check-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function start(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = Bun.spawn([process.execPath, main, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, out, err };
}

describe("the command line", () => {
  test("has a device, the whole list and the usual folder unless told otherwise", () => {
    expect(parseArguments([])).toEqual({
      out: undefined,
      engine: "cuda",
      quick: false,
      parts: ["vectors", "suites", "sanitizers", "offsets", "speeds"],
      vectors: "../shared/conformance",
      help: false,
    });
    expect(parseArguments(["--quick", "--out", "x", "--engine", "cuda-emulated"])).toMatchObject({
      out: "x",
      engine: "cuda-emulated",
      quick: true,
    });
  });
  test("names parts, in their own order", () => {
    expect(parseArguments(["--parts", "speeds, vectors"]).parts).toEqual(["vectors", "speeds"]);
    expect(() => parseArguments(["--parts", "speed"])).toThrow(/^--parts takes vectors, .*; got "speed"$/);
  });
  test("is refused in words", async () => {
    expect(() => parseArguments(["--engine", "cpu"])).toThrow('--engine is cuda or cuda-emulated; got "cpu"');
    const { code, err } = await start("--no-such");
    expect(code).toBe(2);
    expect(err).toContain("Unknown option");
    expect(err).toContain("bun run gpu:check");
  });
  test("an --out that is a file is refused before anything runs", async () => {
    const file = join(folder, "a file");
    await Bun.write(file, "");
    const { code, out, err } = await start("--engine", "cuda-emulated", "--quick", "--out", file);
    expect([code, out]).toEqual([2, ""]);
    expect(err).toMatch(/^--out .* cannot be a folder: /);
  });
  test.skipIf(cudaRefusal() === undefined)(
    "without a device ends with the one error of the engine",
    async () => {
      const { code, out, err } = await start();
      expect([code, out]).toEqual([1, ""]);
      expect(err).toMatch(/^EngineLoadError: \[cuda\] /);
      expect(err.trim().split("\n")).toHaveLength(1);
    },
  );
});

describe("checks", () => {
  const said: string[] = [];
  const context = { say: (line: string) => void said.push(line) } as unknown as CheckContext;
  const part = (name: string, run: Part["run"]): Part => ({ name, run });
  test("one that throws has failed, and the others still run", async () => {
    const outcomes = await runParts(
      [
        part("first", () => ({ status: "passed", detail: "fine" })),
        part("second", () => {
          throw new RangeError("out");
        }),
        part("third", async () => ({ status: "skipped", detail: "nothing there" })),
      ],
      context,
    );
    expect(outcomes).toMatchObject([
      { check: "first", status: "passed", detail: "fine" },
      { check: "second", status: "failed", detail: "RangeError: out" },
      { check: "third", status: "skipped", detail: "nothing there" },
    ]);
    expect(said[0]).toBe("[1/3] first");
    expect(exitCode(outcomes)).toBe(1);
    expect(exitCode([outcomes[0]!, outcomes[2]!])).toBe(0);
  });
  test("read what a test run reports", () => {
    expect(countsOf("\n 12 pass\n 1 skip\n 3 fail\nRan 16 tests")).toEqual({ passed: 12, failed: 3 });
    expect(countsOf("crashed")).toEqual({ passed: 0, failed: 0 });
  });
});

describe("compute-sanitizer", () => {
  async function fake(name: string, script: string): Promise<string> {
    const path = join(folder, name);
    await Bun.write(path, `#!/bin/sh\n${script}\n`);
    await chmod(path, 0o755);
    return path;
  }
  test("runs each of its tools over the short list, in any order", async () => {
    const log = join(folder, "calls");
    const sanitizer = await fake("clean", `echo "$@" >> ${log}; echo "ERROR SUMMARY: 0 errors"`);
    const verdict = await sanitize(sanitizer, "cuda", () => {});
    expect(verdict).toEqual({ status: "passed", detail: "memcheck, racecheck, initcheck, synccheck: clean" });
    const calls = (await Bun.file(log).text()).trim().split("\n");
    expect(calls).toHaveLength(4);
    expect(calls.toSorted()[2]).toMatch(/^--tool racecheck --error-exitcode 9 .*short\.ts cuda$/);
  });
  test("fails the check when it finds something, with its words", async () => {
    const sanitizer = await fake(
      "finds",
      'test "$2" = initcheck && { echo "Uninitialized read"; exit 9; }; echo "ERROR SUMMARY: 0 errors"',
    );
    const { status, detail } = await sanitize(sanitizer, "cuda", () => {});
    expect(status).toBe("failed");
    expect(detail).toBe("initcheck found errors:\nUninitialized read");
  });
  test("fails the check when it says nothing: then it did not look", async () => {
    const { status, detail } = await sanitize(await fake("silent", "exit 0"), "cuda", () => {});
    expect(status).toBe("failed");
    expect(detail).toContain("memcheck ended with 0, without a summary");
  });
  test("is looked for on the path", async () => {
    const path = await fake("compute-sanitizer", "exit 0");
    expect(findSanitizer(folder)).toBe(path);
  });
});

describe("shapes", () => {
  test("have names that are theirs alone", () => {
    for (const shapes of [SHAPES, TINY_SHAPES]) expect(new Set(shapes.map(nameOf)).size).toBe(shapes.length);
  });
  test("count work as papers do", () => {
    const forward: Shape = {
      kind: "forward",
      batch: 4,
      heads: 16,
      length: 4096,
      headDim: 128,
      causal: false,
    };
    expect(flopsOf(forward)).toBe(4 * 4 * 16 * 4096 ** 2 * 128);
    expect(flopsOf({ ...forward, causal: true, kind: "backward" })).toBe(5 * 4 * 16 * 4096 ** 2 * 128);
    const decode = {
      kind: "decode",
      batch: 2,
      heads: 32,
      kvHeads: 8,
      length: 100,
      headDim: 128,
      valueDim: 128,
    } as const;
    expect(cacheBytesOf({ ...decode, storage: "bfloat16" })).toBe(2 * 100 * 8 * 512);
    expect(cacheBytesOf({ ...decode, storage: "int8" })).toBe(2 * 100 * 8 * 264);
    expect(cacheBytesOf({ ...decode, storage: "int4" })).toBe(2 * 100 * 8 * 192);
    const latent = { ...decode, kvHeads: 1, headDim: 576, valueDim: 512, storage: "bfloat16" } as const;
    expect(cacheBytesOf(latent)).toBe(2 * 100 * 1152);
  });
  test("have the design's targets where it has any", () => {
    const targets = SHAPES.map(benchOf).filter(({ target }) => target !== undefined);
    expect(targets.map(({ name }) => name)).toContain("forward d128 4096 full, 4 x 16 heads");
    expect(targets.map(({ name }) => name)).toContain("decode 128 x 32768, 32/8 d128 bfloat16");
    expect(new Set(targets.map(({ target }) => target))).toEqual(new Set([450e12, 2.5e12]));
    const shares = SHAPES.map(benchOf).filter(({ targetShare }) => targetShare !== undefined);
    expect(shares.map(({ name, bound, targetShare }) => [name, bound, targetShare])).toEqual([
      ["rms norm 16384 x 4096", "bytes", 0.85],
      ["append 16384 x 1024", "bytes", 0.85],
    ]);
  });
});

const measured: Measured = {
  name: "decode",
  bound: "bytes",
  milliseconds: 2,
  rate: 2e12,
  share: 0.5,
  target: 2.5e12,
  peers: { flashinfer: 4 },
};
describe("speeds", () => {
  test("below their target are told apart", () => {
    const fast = { ...measured, rate: 2.5e12 };
    const { rate: _, ...untimed } = measured;
    expect(missed([measured, fast, untimed, { ...measured, rate: Number.NaN }])).toHaveLength(2);
  });
  test("of peers are read line by line, and what is missing is said", () => {
    const said: string[] = [];
    const lines = [
      { peer: "flashinfer", missing: "No module" },
      { name: "a", peer: "cudnn", milliseconds: 1.5 },
      { name: "a", peer: "flash", milliseconds: 2 },
      { name: "b", peer: "flash", missing: "refused" },
    ];
    const times = parsePeers(lines.map((l) => JSON.stringify(l)).join("\n"), (line) =>
      said.push(line.trim()),
    );
    expect(Object.fromEntries(times)).toEqual({ a: { cudnn: 1.5, flash: 2 } });
    expect(said).toEqual(["flashinfer: No module", "flash, b: refused"]);
    expect(() => parsePeers("no json", () => {})).toThrow(SyntaxError);
  });
  test.skipIf(Bun.which("python3") === null)(
    "of peers come from a script that says what is missing",
    async () => {
      const python = Bun.spawn(["python3", join(import.meta.dir, "../gpu-check/peers.py")], {
        stdin: new Blob(["[]"]),
        stdout: "pipe",
        env: { ...process.env, PYTHONDONTWRITEBYTECODE: "1" },
      });
      const lines = (await new Response(python.stdout).text()).trim().split("\n");
      expect(await python.exited).toBe(0);
      for (const line of lines.filter((l) => l !== "")) expect(JSON.parse(line)).toHaveProperty("missing");
    },
  );
  const report: Report = {
    date: "2026-11-25T20:00:00.000Z",
    commit: "0123456789",
    engine: "cuda",
    device: {
      device: 0,
      name: "A <device>",
      computeCapability: "9.0",
      multiprocessors: 132,
      memory: 1,
      sharedPerBlock: 1,
      level2Bytes: 1,
      driver: "13.0",
    },
    outcomes: [
      { check: "suites", status: "passed", detail: "9 tests", seconds: 1 },
      { check: "vectors", status: "failed", detail: "off\nby far", seconds: 2 },
    ],
    speeds: [measured, { name: "large", bound: "bytes", peers: {}, note: "needs 90 GiB" }],
  };
  test("stand in a table with target and peers, failures in full, counts last", () => {
    const lines = text(report).split("\n");
    expect(lines[0]).toContain("A <device>, compute capability 9.0, 132 multiprocessors");
    expect(lines.find((l) => l.startsWith("decode"))).toMatch(
      /2\.00 ms +2000 GB\/s +50 % +>= 2500 GB\/s NO +flashinfer 2\.00 x$/,
    );
    expect(lines.find((l) => l.startsWith("large"))).toContain("needs 90 GiB");
    expect(lines).toContain("by far");
    expect(lines.at(-1)).toBe("1 passed, 1 failed, 0 skipped");
  });
  test("are drawn as bars of the peak, a peer's as a mark", () => {
    const svg = picture(report);
    expect(svg).toContain("A &lt;device&gt;");
    expect(svg).toContain('width="260.0"'); // half of 520
    expect(svg).toContain('<line x1="430"'); // a quarter: the peer takes twice as long
    expect(svg).toContain("needs 90 GiB");
  });
});

describe.skipIf(missing !== undefined)("on the emulated device", () => {
  /** An engine whose clock gives each launch so many milliseconds for each run in it. */
  function clocked(milliseconds: number): CudaEngine {
    const engine = cudaEmulated();
    let inGraph = 0;
    const capture = (run: () => void) => {
      run();
      const runs = inGraph;
      inGraph = 0;
      return { launch: () => void (inGraph += runs), [Symbol.dispose]: () => {} };
    };
    const elapsed = async (run: () => void) => {
      inGraph = 0;
      run();
      const ms = inGraph * milliseconds;
      inGraph = 0;
      return ms;
    };
    return {
      ...engine,
      capture,
      elapsed,
      sync: async () => void (inGraph = 0),
      ran: () => void inGraph++,
    } as never;
  }
  test.each([0.01, 0.5, 30])("a run of %p ms is measured as such, whatever fits into a graph", async (ms) => {
    const engine = clocked(ms);
    const bench = {
      name: "b",
      bound: "flops" as const,
      work: 1e9,
      memory: 0,
      open: () => ({ run: () => (engine as never as { ran(): void }).ran(), [Symbol.dispose]: () => {} }),
    };
    const result = await measureBench(engine, bench, { flops: 1e14, bytes: 1 });
    expect(result.milliseconds).toBeCloseTo(ms, 9);
    expect(result.rate).toBeCloseTo(1e12 / ms, -3);
    expect(result.share).toBeCloseTo(0.01 / ms, 9);
  });
  test("a target that is a share of a peak is asked of its own peak, and of none that was not measured", async () => {
    const engine = clocked(1);
    const bench = {
      name: "b",
      bound: "bytes" as const,
      work: 84e7,
      memory: 0,
      targetShare: 0.85,
      open: () => ({ run: () => (engine as never as { ran(): void }).ran(), [Symbol.dispose]: () => {} }),
    };
    const slow = await measureBench(engine, bench, { flops: 1, bytes: 1e12 });
    expect(slow.target).toBeCloseTo(0.85e12, 0);
    expect(missed([slow])).toEqual([slow]);
    const fast = await measureBench(engine, { ...bench, work: 86e7 }, { flops: 1e15, bytes: 1e12 });
    expect(missed([fast])).toEqual([]);
    const alone = await measureBench(engine, bench, { flops: 1, bytes: Number.NaN });
    expect(alone).not.toHaveProperty("target");
  });
  test.each([
    ["9.0", 5],
    ["8.6", undefined],
  ])("a rate is asked of Hopper, whose it is: %s", async (computeCapability, expected) => {
    const engine = clocked(1);
    const device = { ...engine, cuda: { ...engine.cuda, computeCapability } } as CudaEngine;
    const bench = {
      name: "b",
      bound: "flops" as const,
      work: 1,
      memory: 0,
      target: 5,
      open: () => ({ run: () => (device as never as { ran(): void }).ran(), [Symbol.dispose]: () => {} }),
    };
    expect((await measureBench(device, bench, { flops: 1, bytes: 1 })).target).toBe(expected);
  });
  test("time passes on the device's clock, and what is run is what is asked for", async () => {
    const engine = cudaEmulated();
    let ran = 0;
    expect(await engine.elapsed(() => void ran++)).toBeGreaterThanOrEqual(0);
    expect(ran).toBe(1);
    const thrown = engine.elapsed(() => {
      throw new RangeError("mine");
    });
    await expect(thrown).rejects.toThrow("mine");
  });
  test("peaks and every kind of bench free what they take", () => {
    const engine = cudaEmulated();
    Bun.gc(true);
    const { blocks } = engine.memory();
    for (const bench of [...peakBenches(true), ...TINY_SHAPES.map(benchOf)]) {
      using subject = bench.open(engine);
      subject.run();
    }
    expect(engine.memory().blocks).toBeLessThanOrEqual(blocks);
  });
  test("the quick check passes whole, and leaves a report and a picture", async () => {
    const out = join(folder, "report");
    const { code, out: table, err } = await start("--engine", "cuda-emulated", "--quick", "--out", out);
    expect(err).toContain("[5/5] speeds");
    expect({ code, table: table.trim().split("\n").at(-1) }).toEqual({
      code: 0,
      table: expect.stringMatching(/^[12] passed, 0 failed, [34] skipped$/),
    });
    const report = (await Bun.file(join(out, "report.json")).json()) as Report;
    expect(report.outcomes.map(({ check }) => check)).toEqual([
      "conformance vectors",
      "engine suites",
      "compute-sanitizer",
      "offsets past 4 GiB",
      "speeds",
    ]);
    expect(report.speeds.every(({ rate }) => rate === undefined)).toBe(true);
    expect(await Bun.file(join(out, "report.svg")).text()).toStartWith("<svg");
  }, 60_000);
});
