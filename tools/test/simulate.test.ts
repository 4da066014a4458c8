import "@heed/engine-cpu";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Arrivals } from "../simulate/arrivals.ts";
import { parseArguments } from "../simulate/arguments.ts";
import { serveContiguous } from "../simulate/contiguous.ts";
import { servePaged } from "../simulate/paged.ts";
import { simulationPicture } from "../simulate/picture.ts";
import { means, type Sample } from "../simulate/samples.ts";
import {
  lengthOf,
  MAX_LENGTH,
  type Request,
  tokenAt,
  type Workload,
  workload,
} from "../simulate/workload.ts";

const cache = { pages: 512, pageSize: 64 };
const rows = 512 * 64;
const load = (isShared: boolean, requests = 300, seed = 1, room = rows): Workload =>
  workload({ seed, requests, isShared, rows: room });
const total = (requests: readonly Request[], of: (r: Request) => number): number =>
  requests.reduce((sum, r) => sum + of(r), 0);
/** What a step computes for a request when nothing is found and nothing is done again. */
const work = ({ prompt, output, width }: Request): number => prompt + width * output;

describe("a load", () => {
  test.each([false, true])(
    "has the wanted mean length, and nothing longer than allowed (shared: %p)",
    (isShared) => {
      const { requests } = load(isShared);
      expect(total(requests, lengthOf) / requests.length).toBeCloseTo(756, 0);
      expect(Math.max(...requests.map(lengthOf))).toBeLessThanOrEqual(MAX_LENGTH);
      expect(Math.min(...requests.map((r) => Math.min(r.prompt, r.output)))).toBeGreaterThan(0);
    },
  );
  test("follows from its seed", () => {
    expect(load(true)).toEqual(load(true));
    expect(load(true, 300, 2)).not.toEqual(load(true));
  });
  test("without sharing is of single turns; with sharing of chats, samples and beams", () => {
    expect(
      load(false).requests.every((r) => r.next === undefined && r.width === 1 && r.systemTokens === 0),
    ).toBe(true);
    const { requests } = load(true);
    expect(new Set(requests.map(({ kind }) => kind))).toEqual(new Set(["single", "samples", "beams"]));
    expect(requests.some(({ next }) => next !== undefined)).toBe(true);
  });
  test("a later turn begins with all of the turn before, and requests share the tokens of a system prompt only", () => {
    const { requests } = load(true);
    const tokens = (r: Request, n: number): number[] => Array.from({ length: n }, (_, p) => tokenAt(r, 0, p));
    for (const first of requests.filter(({ next }) => next !== undefined).slice(0, 20)) {
      expect(first.next!.prompt).toBeGreaterThan(lengthOf(first));
      expect(tokens(first.next!, lengthOf(first))).toEqual(tokens(first, lengthOf(first)));
    }
    const [a, b] = requests.filter(({ system, systemTokens }) => system === 0 && systemTokens > 0) as [
      Request,
      Request,
    ];
    expect(tokens(a, a.systemTokens)).toEqual(tokens(b, b.systemTokens));
    expect(tokenAt(a, 0, a.systemTokens)).not.toBe(tokenAt(b, 0, b.systemTokens));
    expect(tokenAt(a, 1, a.prompt)).not.toBe(tokenAt(a, 0, a.prompt));
  });
  test("a turn arrives when the one before has been answered and thought about", () => {
    const base = {
      conversation: 0,
      system: 0,
      systemTokens: 0,
      kind: "single",
      width: 1,
      prompt: 1,
      output: 1,
    } as const;
    const next = { ...base, after: 2, next: undefined };
    const first = { ...base, after: 1, next };
    const arrivals = new Arrivals({ first: [first], requests: [first, next] });
    expect([arrivals.at(0), arrivals.at(1)]).toEqual([[], [first]]);
    arrivals.answered(first, 1);
    expect([arrivals.at(2), arrivals.at(3), arrivals.at(4)]).toEqual([[], [], [next]]);
    expect(arrivals.isOpen).toBe(true);
    arrivals.answered(next, 5);
    expect(arrivals.isOpen).toBe(false);
  });
});
describe("the paged cache under a load", () => {
  test("wastes less than 4 % of its rows at a mean length of 756 with pages of 64", () => {
    for (const seed of [1, 2, 3]) {
      const { samples, foundTokens } = servePaged(load(false, 250, seed), cache);
      const { waste, tokensPerRow } = means(samples, 64);
      expect(waste).toBeLessThan(0.04);
      expect(waste).toBeGreaterThan(0.03); // half a page of each sequence is idle, whoever counts
      expect(tokensPerRow).toBeLessThanOrEqual(1);
      expect(foundTokens).toBe(0);
    }
  });
  test("gives the same for the same seed", () => {
    const run = (seed: number): object => {
      const { bookkeepingMs: _, ...rest } = servePaged(load(true, 100, seed), cache);
      return rest;
    };
    expect(run(5)).toEqual(run(5));
    expect(run(6)).not.toEqual(run(5));
  });
  test("computes every token once but for those it finds, and keeps its books in order", () => {
    for (const isShared of [false, true]) {
      const all = load(isShared, 100);
      const run = servePaged(all, { ...cache, checkEvery: 4 });
      expect(run.tokens).toBe(total(all.requests, work) - run.foundTokens + run.repeatedTokens);
      expect(run.promptTokens).toBe(total(all.requests, ({ prompt }) => prompt));
    }
  });
  test("finds what is shared, and holds more at once than contiguous caches of as many rows", () => {
    const all = load(true);
    const run = servePaged(all, cache);
    expect(run.foundTokens / run.promptTokens).toBeGreaterThan(0.1);
    expect(means(run.samples, 64).tokensPerRow).toBeGreaterThan(1);
    const exact = serveContiguous(all, rows, lengthOf);
    const longest = serveContiguous(all, rows, () => MAX_LENGTH);
    expect(run.mean).toBeGreaterThan(exact.mean);
    expect(exact.mean).toBeGreaterThan(longest.mean);
    expect(longest.most).toBeLessThanOrEqual(rows / MAX_LENGTH);
  });
  test("puts requests off when pages run out, and still answers all", () => {
    for (const isShared of [false, true]) {
      const all = load(isShared, 200, 2, 256 * 64);
      const run = servePaged(all, { pages: 256, pageSize: 64, checkEvery: 8 });
      expect(run.putOff).toBeGreaterThan(0);
      expect(run.repeatedTokens).toBeGreaterThan(0);
      expect(run.evictedPages).toBeGreaterThan(0);
      expect(run.tokens).toBe(total(all.requests, work) - run.foundTokens + run.repeatedTokens);
    }
  });
});
describe("a contiguous cache under a load", () => {
  const request = (prompt: number, output: number, after: number): Request => ({
    conversation: 0,
    system: 0,
    systemTokens: 0,
    kind: "single",
    width: 1,
    prompt,
    output,
    after,
    next: undefined,
  });
  const served = (requests: readonly Request[], rows: number) =>
    serveContiguous({ first: requests, requests }, rows, lengthOf);

  test("takes a step for a prompt and one for each token answered", () => {
    expect(served([request(3, 2, 0)], 5)).toEqual({ steps: 3, most: 1, mean: 1 });
    expect(served([request(1025, 2, 0)], 2000)).toEqual({ steps: 4, most: 1, mean: 1 });
  });
  test("lets in first who came first, when there is room for all of it", () => {
    const requests = [request(4, 2, 0), request(6, 4, 0), request(1, 1, 0)];
    // 6 rows, 10 rows, 2 rows: the second waits for the first, and the third behind it
    expect(served(requests, 12)).toEqual({ steps: 3 + 5, most: 2, mean: 1 });
    expect(served(requests, 18)).toEqual({ steps: 5, most: 3, mean: 2 });
    expect(() => served(requests, 9)).toThrow(RangeError);
  });
});
test("means weigh samples by their pages in use", () => {
  const sample = (usedPages: number, waste: number, tokens: number, sequences: number): Sample => ({
    command: 0,
    groups: [],
    usedPages,
    waste,
    tokens,
    sequences,
    evictedPages: 0,
    promptTokens: 0,
    foundTokens: 0,
  });
  const all = [sample(1, 0.5, 2, 1), sample(3, 0.25, 18, 3), sample(0, 0, 0, 0)];
  expect(means(all, 4)).toEqual({ waste: 0.3125, tokensPerRow: 20 / 16, length: 5 });
  expect(means([], 4)).toEqual({ waste: 0, tokensPerRow: 0, length: 0 });
});
describe("the command", () => {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "heed-simulate-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));
  const run = async (...args: string[]): Promise<{ code: number; out: string; err: string }> => {
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "../simulate/main.ts"), ...args], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { code: await child.exited, out, err };
  };
  test("prints waste, hits, evictions and sequences at once, and draws them", async () => {
    const svg = join(folder, "load.svg");
    const { code, out, err } = await run("--requests", "80", "--pages", "256", "--out", svg);
    expect([code, err]).toEqual([0, ""]);
    for (const text of ["256 pages of 64 tokens, seed 1", "waste", "prompt tokens found", "pages evicted"])
      expect(out).toContain(text);
    expect(out).toMatch(/contiguous, of 4096 tokens +[1-4], 4 +[1-4], 4\n/);
    const drawn = await Bun.file(svg).text();
    for (const text of [
      "pages, of 256",
      "Pages evicted",
      "found published",
      'class="cached"',
      'class="line"',
    ])
      expect(drawn).toContain(text);
    expect(drawn).not.toMatch(/NaN|Infinity|undefined/);
  });
  test("refuses in words what it cannot do", async () => {
    for (const args of [["--pages", "255"], ["--seed", "x"], ["--what"], ["more"], ["--requests", "0"]])
      expect(() => parseArguments(args)).toThrow(TypeError);
    const { code, err } = await run("--pages", "1");
    expect([code, err.includes("--pages must be a whole number from 256")]).toEqual([2, true]);
  });
});
test("a picture of nothing is a picture", () => {
  expect(simulationPicture([], 4, 64)).not.toMatch(/NaN|Infinity|undefined/);
});
