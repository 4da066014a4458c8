import {
  add,
  copyInto,
  kvAppend,
  linear,
  matmul,
  pagedAttention,
  recordTape,
  rmsNorm,
  scope,
  softmax,
  tensor,
  type Tensor,
  zeros,
} from "@heed/tensor";
import { createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { cudaEmulated } from "../src/index.ts";
import { emulatedMissing, testedEngine } from "./support.ts";

const numbers = (n: number, seed: number): Float32Array<ArrayBuffer> =>
  Float32Array.from(createRng(seed).normalArray(n));

describe.skipIf(emulatedMissing !== undefined)("a tape on a device", () => {
  const inputs = (seed: number): Tensor<"float32">[] =>
    [0, 1, 2].map((i) => tensor(numbers(30, seed + i), [5, 6], { engine: testedEngine() }));
  const program = ([x, y, w]: readonly Tensor<"float32">[]): Tensor => {
    const scores = softmax(matmul(x!, y!.transpose()));
    return rmsNorm(linear(add(matmul(scores, y!), 0.25), w!), undefined);
  };
  test("is a graph from its first replay on, and computes what the calls would, in the same memory", async () => {
    const given = inputs(1);
    const { outputs, tape } = recordTape(testedEngine(), () => program(given));
    const first = await outputs.read();
    expect(tape.isCaptured).toBe(false);
    for (let seed = 1; seed < 5; seed++) {
      const others = inputs(10 * seed);
      others.forEach((other, i) => copyInto(other, given[i]!));
      const expected = await scope(() => program(others)).read();
      tape.replay();
      expect(tape.isCaptured).toBe(true);
      const got = await outputs.read();
      expect(got).toEqual(expected);
      expect(got).not.toEqual(first);
    }
    for (const t of [...given, outputs, tape]) t[Symbol.dispose]();
  });
  test("recording computes, and a capture does not: the inputs of a recurrence advance once a replay", async () => {
    const engine = testedEngine();
    using x = tensor([1, 2, 3], undefined, { engine });
    const { tape } = recordTape(engine, () => copyInto(add(x, x), x));
    expect([...(await x.read())]).toEqual([2, 4, 6]);
    for (let n = 2; n < 6; n++) {
      tape.replay();
      expect([...(await x.read())]).toEqual([1, 2, 3].map((v) => v * 2 ** n));
    }
    tape[Symbol.dispose]();
  });
  test("keeps what was uploaded while it was recorded", async () => {
    const engine = testedEngine();
    using x = tensor([1, 2, 3], undefined, { engine });
    const constant = Float32Array.of(10, 20, 30);
    const { outputs, tape } = recordTape(engine, () => add(x, tensor(constant, undefined, { engine })));
    constant.fill(0);
    using other = tensor([4, 5, 6], undefined, { engine });
    copyInto(other, x);
    for (let n = 0; n < 3; n++) {
      tape.replay();
      expect([...(await outputs.read())]).toEqual([14, 25, 36]);
    }
    for (const t of [outputs, tape]) t[Symbol.dispose]();
  });
  test("gives back all memory when it is disposed", async () => {
    const engine = testedEngine();
    const before = engine.memory().blocks;
    const given = inputs(3);
    const { outputs, tape } = recordTape(engine, () => program(given));
    tape.replay();
    tape.replay();
    tape[Symbol.dispose]();
    tape[Symbol.dispose]();
    expect((await outputs.read()).every(Number.isFinite)).toBe(true);
    for (const t of [...given, outputs]) t[Symbol.dispose]();
    expect(engine.memory().blocks).toBe(before);
  });
  test("of a decode step is one graph, and finds the slots, pages and lengths of each step where they lie", async () => {
    const engine = testedEngine();
    for (const fused of ["off", "auto"] as const) {
      const int = (...values: number[]): Tensor<"int32"> =>
        tensor(Int32Array.from(values), undefined, { dtype: "int32", engine });
      const set = (t: Tensor, ...values: number[]): void => scope(() => copyInto(int(...values), t));
      const rows = (seed: number): Tensor<"float32"> => tensor(numbers(6, seed), [2, 1, 3], { engine });
      const [q, k] = [rows(1), rows(2)];
      const [pages, plain] = [0, 1].map(() => zeros([4, 1, 2, 3], { engine })) as [Tensor, Tensor];
      const [queryIndptr, indptr, indices] = [int(0, 1, 2), int(0, 2, 3), int(3, 1, 2)];
      const [lengths, slots] = [int(1, 1), int(6, 4)];
      const table = { queryIndptr, indptr, indices, lengths, slots, epoch: 1 };
      const step = (into: Tensor): Tensor => {
        kvAppend(k, k, into, into, slots, { fused });
        return pagedAttention(q, { kPages: into, vPages: into, table }, { fused });
      };
      const { outputs, tape } = recordTape(engine, () => step(pages));
      scope(() => step(plain));
      expect(tape.instructions.every(({ kind }) => kind !== "composed")).toBe(true);
      const following: readonly [lengths: number[], slots: number[]][] = [
        [
          [2, 1],
          [7, -1],
        ],
        [
          [3, 2],
          [2, 5],
        ],
      ];
      for (const [nowLong, nowAt] of following) {
        set(lengths, ...nowLong);
        set(slots, ...nowAt);
        using row = rows(nowLong[0]! + 40);
        copyInto(row, k);
        tape.replay();
        using expected = scope(() => step(plain));
        expect(await outputs.read()).toEqual(await expected.read());
        expect(await pages.read()).toEqual(await plain.read());
        expect(tape.isCaptured).toBe(true);
      }
      for (const t of [q, k, pages, plain, queryIndptr, indptr, indices, lengths, slots, outputs, tape])
        t[Symbol.dispose]();
    }
  });
  test("holds what is allocated while it is captured until it is disposed, and no longer", () => {
    const engine = cudaEmulated(); // a device's free memory is other processes' too, and a driver's pool takes it in pieces
    engine.trim();
    const before = engine.memory();
    const captured = engine.capture!(() => engine.alloc(2 ** 20).release());
    captured.launch();
    expect(before.deviceFree - engine.memory().deviceFree).toBeGreaterThanOrEqual(2 ** 20);
    captured[Symbol.dispose]();
    captured[Symbol.dispose]();
    engine.trim();
    expect(engine.memory()).toEqual(before);
    expect(() => captured.launch()).toThrow("freed");
  });
  test("fails with the engine's error when it cannot be captured, and the engine goes on", async () => {
    const engine = testedEngine();
    using x = tensor([1, 2], undefined, { engine });
    expect(() =>
      engine.capture!(() => {
        engine.copy(x, x);
        throw new Error("not to be recorded");
      }),
    ).toThrow("not to be recorded");
    using y = add(x, 1);
    expect([...(await y.read())]).toEqual([2, 3]);
    expect(() => engine.capture!(() => void engine.capture!(() => {}))).toThrow("being recorded already");
    await expect(engine.read(x)).resolves.toEqual(Float32Array.of(1, 2));
  });
});
