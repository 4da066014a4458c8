import {
  add,
  arange,
  ArgumentError,
  attention,
  copyInto,
  DeviceError,
  DisposedError,
  type Engine,
  exp,
  gather,
  getEngine,
  kvAppend,
  normRopeAppend,
  linear,
  memoryUsage,
  mul,
  ones,
  pagedAttention,
  recordTape,
  rope,
  scope,
  sum,
  type Tape,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";
import { fakeEngine } from "./fake.ts";
import { bits, ints, normal } from "./tape-support.ts";

const values = (t: Tensor): number[] => [...toFloat64(t)];

describe.each(engines)("recordTape on %s", (name) => {
  const engine = getEngine(name);
  const vector = (...x: number[]): Tensor<"float32"> => tensor(x, undefined, { engine });

  test("the outputs are those of the call, and each replay writes them anew", () => {
    scope(() => {
      const x = vector(1, 2);
      const { outputs, tape } = recordTape(engine, () => ({ y: add(x, 1), list: [mul(x, 2)] }));
      expect([values(outputs.y), values(outputs.list[0]!)]).toEqual([
        [2, 3],
        [2, 4],
      ]);
      copyInto(vector(5, 6), x);
      expect(values(outputs.y)).toEqual([2, 3]);
      tape.replay();
      expect([values(outputs.y), values(outputs.list[0]!)]).toEqual([
        [6, 7],
        [10, 12],
      ]);
    });
  });
  test("an output may be the next replay's input: a recurrence", () => {
    scope(() => {
      const x = vector(1, 2);
      const { tape } = recordTape(engine, () => copyInto(add(mul(x, 2), 1), x));
      for (let i = 0; i < 3; i++) tape.replay();
      expect(values(x)).toEqual([31, 47]);
    });
  });
  test("instructions are listed with names, dtypes and shapes, in order", () => {
    scope(() => {
      const x = tensor([[1, 2, 3]], undefined, { engine, dtype: "float64" });
      const { tape } = recordTape(engine, () => sum(exp(x), { axes: [1] }));
      expect(tape.instructions).toEqual([
        {
          name: "exp",
          kind: "core",
          operands: [
            { name: "x", dtype: "float64", shape: [1, 3] },
            { name: "out", dtype: "float64", shape: [1, 3] },
          ],
        },
        {
          name: "sum",
          kind: "core",
          operands: [
            { name: "x", dtype: "float64", shape: [1, 3] },
            { name: "out", dtype: "float64", shape: [1, 1] },
          ],
        },
      ]);
    });
  });
  test("a fused operation is one instruction where a kernel runs it, with the plan's tensors", () => {
    const kernel = engine.fused.linear !== undefined;
    scope(() => {
      const [x, w] = [ones([2, 4], { engine }), ones([3, 4], { engine })];
      const { instructions } = recordTape(engine, () => linear(x, w)).tape;
      expect(instructions.map(({ name }) => name)).toEqual(kernel ? ["linear"] : ["matmul"]);
      const shapes = Object.fromEntries(instructions[0]!.operands.map((o) => [o.name, o.shape]));
      expect(shapes).toEqual(
        kernel ? { x: [2, 4], weight: [3, 4], out: [2, 3] } : { a: [2, 4], b: [4, 3], out: [2, 3] },
      );
    });
  });
  test("what a fused operation on the host decides by values is decided anew", () => {
    scope(() => {
      const q = normal(engine, "float32", [1, 2, 1, 2], 1) as Tensor<"float32">;
      const { tape } = recordTape(engine, () => attention(q, q, q));
      const kinds = tape.instructions.map(({ name: n, kind }) => `${n} ${kind}`);
      expect(kinds).toEqual([engine.fused.attention ? "attention kernel" : "attention composed"]);
    });
  });
  test("the tape keeps temporaries, inputs and outputs alive, and disposing it frees them", () => {
    const before = memoryUsage().storages;
    let tape!: Tape;
    const out = zeros([2], { engine });
    {
      using x = vector(1, 2);
      scope(() => {
        const recorded = recordTape(engine, () => copyInto(add(exp(x), x), out));
        tape = recorded.tape;
        return recorded;
      });
    }
    const first = bits(out);
    scope(() => copyInto(vector(0, 0), out));
    tape.replay();
    expect(bits(out)).toEqual(first);
    expect(memoryUsage().storages - before).toBe(4); // x, exp, add, out
    expect(tape.bytes).toBe(4 * 8);
    tape[Symbol.dispose]();
    tape[Symbol.dispose]();
    expect(tape.bytes).toBe(0);
    expect(values(out)).toHaveLength(2);
    out[Symbol.dispose]();
    expect(memoryUsage().storages).toBe(before);
  });
  test("outputs outlive the tape", () => {
    scope(() => {
      const { outputs, tape } = recordTape(engine, () => add(vector(1, 2), 1));
      tape[Symbol.dispose]();
      expect(values(outputs)).toEqual([2, 3]);
    });
  });
  test("a scope disposes a tape that is not returned, and nothing is left", () => {
    const before = memoryUsage().storages;
    const tape = scope(() => {
      const x = vector(1, 2);
      const recorded = recordTape(engine, () => exp(x));
      return { label: "not the tape", hidden: () => recorded.tape };
    }).hidden();
    expect(memoryUsage().storages).toBe(before);
    expect(() => tape.replay()).toThrow(DisposedError);
  });
  test("a function that looks at values is bound to them", () => {
    scope(() => {
      const x = vector(1, 2);
      const { outputs, tape } = recordTape(engine, () => (x.data[0] === 1 ? exp(x) : add(x, 1)));
      const first = bits(outputs);
      tape.replay();
      expect(bits(outputs)).toEqual(first);
      copyInto(vector(1, 3), x);
      expect(() => tape.replay()).toThrow("looked at the values of float32[2]");
      const viaCopy = recordTape(engine, () => (toFloat64(x)[0] === 1 ? exp(x) : add(x, 1))).tape;
      copyInto(vector(2, 3), x);
      expect(() => viaCopy.replay()).toThrow(ArgumentError);
    });
  });
  test("what was uploaded inside is a constant, even when the caller's array changes", () => {
    scope(() => {
      const host = new Float32Array([1, 2]);
      const x = vector(0, 0);
      const { outputs, tape } = recordTape(engine, () => add(x, tensor(host, [2], { engine })));
      host[0] = 100;
      tape.replay();
      expect(values(outputs)).toEqual([1, 2]);
    });
  });
  test("after a recording the engine is as it was", () => {
    const before = { ...engine };
    scope(() => {
      const x = vector(1);
      expect(engine.copy).toBe(before.copy);
      const { tape } = recordTape(engine, () => {
        expect(engine.copy).not.toBe(before.copy);
        return exp(x);
      });
      const count = tape.instructions.length;
      exp(x);
      expect(tape.instructions.length).toBe(count);
    });
    expect({ ...engine }).toEqual(before);
  });
  test("an error of the function reaches the caller, frees what was made and ends the recording", () => {
    using x = vector(1);
    const before = memoryUsage().storages;
    const { copy } = engine;
    const fail = (): never => {
      exp(x);
      throw new RangeError("mine");
    };
    expect(() => recordTape(engine, fail)).toThrow(RangeError);
    expect(memoryUsage().storages).toBe(before);
    expect(engine.copy).toBe(copy);
    scope(() => expect(values(recordTape(engine, () => add(x, 1)).outputs)).toEqual([2]));
  });
  test("a recording inside a recording, and a replay inside one, are ArgumentErrors", () => {
    scope(() => {
      const x = vector(1);
      const { tape } = recordTape(engine, () => exp(x));
      expect(() => recordTape(engine, () => recordTape(engine, () => exp(x)))).toThrow(ArgumentError);
      expect(() => recordTape(engine, () => tape.replay())).toThrow(
        "cannot be replayed while one is recorded",
      );
      tape.replay();
    });
  });
  test("reading, waiting and promises are ArgumentErrors, and nothing leaks", async () => {
    using x = vector(1);
    const before = memoryUsage().storages;
    const reading: Promise<unknown>[] = [];
    expect(() => recordTape(engine, () => void reading.push(x.read()))).toThrow("calls read()");
    expect(() => recordTape(engine, () => void reading.push(engine.sync()))).toThrow("calls sync()");
    expect(() => recordTape(engine, async () => exp(x))).toThrow("promise");
    await Promise.all(reading);
    expect(memoryUsage().storages).toBe(before);
  });
  test("another engine's calls are DeviceErrors", () => {
    scope(() => {
      const x = ones([2], { engine: fakeEngine({}, "other") });
      expect(() => recordTape(engine, () => exp(x))).toThrow(DeviceError);
    });
  });
});

describe.each(engines)("a replay on %s checks again", (name) => {
  const engine = getEngine(name);
  const set = (t: Tensor, ...x: number[]): void => scope(() => copyInto(ints(engine, x, [...t.shape]), t));
  /** Replays with bad values, then with good ones. */
  function expectChecked(tape: Tape, t: Tensor, bad: number[], good: number[], message: string): void {
    set(t, ...bad);
    expect(() => tape.replay()).toThrow(ArgumentError);
    expect(() => tape.replay()).toThrow(message);
    set(t, ...good);
    tape.replay();
  }
  test("the indices of gather", () => {
    scope(() => {
      const [x, at] = [ones([3, 2], { engine }), ints(engine, [0, 2])];
      const { tape } = recordTape(engine, () => gather(x, at));
      expectChecked(tape, at, [0, 3], [1, 1], "[gather] index 3 at position 1");
      expectChecked(tape, at, [-1, 0], [2, 2], "[gather] index -1");
    });
  });
  test("the positions of rope, spread over a batch too", () => {
    scope(() => {
      const [x, table, at] = [ones([2, 2, 1, 4], { engine }), ones([4, 2], { engine }), ints(engine, [0, 1])];
      const { tape } = recordTape(engine, () => rope(x, table, table, { positions: at }));
      expectChecked(tape, at, [3, 4], [2, 3], "[rope] position 4 is outside the tables of 4 rows");
    });
  });
  test("lengths and offsets of attention", () => {
    scope(() => {
      const [x, lengths] = [ones([2, 3, 1, 4], { engine }), ints(engine, [3, 1])];
      const { tape } = recordTape(engine, () => attention(x, x, x, { kvLengths: lengths }));
      expectChecked(tape, lengths, [3, 4], [0, 3], "[attention] kvLengths[1] must be from 0 to 3");
    });
  });
  test("the slots of an append and the table of attention over pages", () => {
    scope(() => {
      const [row, pages] = [ones([1, 1, 4], { engine }), ones([3, 1, 2, 4], { engine })];
      const [queryIndptr, indptr] = [ints(engine, [0, 1]), ints(engine, [0, 2])];
      const [indices, lengths, slots] = [ints(engine, [0, 1]), ints(engine, [3]), ints(engine, [2])];
      const table = { queryIndptr, indptr, indices, lengths, slots, epoch: 1 };
      const { tape } = recordTape(engine, () => {
        kvAppend(row, row, pages, pages, slots);
        return pagedAttention(row, { kPages: pages, vPages: pages, table });
      });
      expectChecked(tape, slots, [6], [3], "[kvAppend] slot 6 of row 0");
      expectChecked(tape, lengths, [5], [4], "sequence 0 has 5 tokens");
      expectChecked(tape, indices, [0, 3], [2, 1], "page 3 at 1");
      expectChecked(tape, indptr, [0, 3], [0, 2], "indptr must end at 2");
      expectChecked(tape, queryIndptr, [0, 2], [0, 1], "queryIndptr must end at 1");
    });
  });
  test("the slots and positions of norm, rotation and append in one", () => {
    scope(() => {
      const [row, pages] = [ones([1, 1, 4], { engine }), ones([3, 1, 2, 4], { engine })];
      const [table, weight] = [ones([5, 2], { engine }), ones([4], { engine })];
      const [positions, slots] = [ints(engine, [3]), ints(engine, [2])];
      const rope = { cos: table, sin: table, positions };
      const { tape } = recordTape(engine, () =>
        normRopeAppend(row, row, row, { kPages: pages, vPages: pages, slots }, { norm: { q: weight }, rope }),
      );
      expectChecked(tape, slots, [6], [-1], "[kvAppend] slot 6 of row 0");
      expectChecked(tape, positions, [5], [4], "[rope] position 5 is outside the tables of 5 rows");
    });
  });
  test("a table that was validated before the recording", () => {
    scope(() => {
      const [q, pages] = [ones([1, 1, 4], { engine }), ones([3, 1, 2, 4], { engine })];
      const lengths = ints(engine, [3]);
      const table = {
        queryIndptr: ints(engine, [0, 1]),
        indptr: ints(engine, [0, 2]),
        indices: ints(engine, [0, 1]),
        lengths,
        slots: ints(engine, [2]),
        epoch: 1,
      };
      const run = (): Tensor => pagedAttention(q, { kPages: pages, vPages: pages, table });
      run();
      expectChecked(recordTape(engine, run).tape, lengths, [5], [4], "sequence 0 has 5 tokens");
    });
  });
});

test("an engine whose methods are inherited has none of its own after a recording", () => {
  const engine = fakeEngine({}, "inherits");
  const own = Object.keys(engine);
  scope(() => void recordTape(engine, () => exp(ones([2], { engine }))));
  expect(Object.keys(engine)).toEqual(own);
});
test("a frozen engine is an ArgumentError", () => {
  const engine: Engine = Object.freeze(fakeEngine({}, "frozen"));
  expect(() => recordTape(engine, () => arange(0, 3, 1, { engine }))).toThrow("frozen");
});
