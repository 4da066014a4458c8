import { ArgumentError, ones, scope, type Tensor, trackLeaks } from "@heed/tensor";
import { expect, test } from "bun:test";
import "../engines.ts";

const one = (): Tensor<"float32"> => ones([1], { engine: "portable" });

test("what the function returns lives on; the rest is disposed", () => {
  using tracker = trackLeaks();
  const made: Tensor[] = [];
  using kept = scope(() => {
    for (let i = 0; i < 3; i++) made.push(one());
    return made[1]!;
  });
  expect(made.map((t) => t.disposed)).toEqual([true, false, true]);
  expect(tracker.report()).toHaveLength(1);
  expect(kept.data[0]).toBe(1);
});
test("tensors are found in arrays, maps, plain objects and any nesting of them, cycles included", () => {
  interface Result {
    readonly list: readonly Tensor[];
    readonly map: ReadonlyMap<string, { readonly t: Tensor }>;
    readonly numbers: Float32Array;
    self?: Result;
  }
  const result = scope(() => {
    const r: Result = { list: [one()], map: new Map([["a", { t: one() }]]), numbers: new Float32Array(3) };
    r.self = r;
    one();
    return r;
  });
  expect(result.list[0]!.disposed).toBe(false);
  expect(result.map.get("a")!.t.disposed).toBe(false);
  result.list[0]![Symbol.dispose]();
  result.map.get("a")!.t[Symbol.dispose]();
});
test("what an inner scope returns belongs to the outer one", () => {
  let inner!: Tensor;
  let dropped!: Tensor;
  using kept = scope(() => {
    inner = scope(() => {
      dropped = one();
      return one();
    });
    expect(dropped.disposed).toBe(true);
    expect(inner.disposed).toBe(false);
    return one();
  });
  expect(inner.disposed).toBe(true);
  expect(kept.disposed).toBe(false);
});
test("a tensor from outside is not the scope's to free", () => {
  using outside = one();
  scope(() => outside.alias());
  expect(outside.disposed).toBe(false);
});
test("when the function throws everything is disposed, and the next scope is in order", () => {
  using tracker = trackLeaks();
  const fail = (): never => {
    one();
    scope(() => {
      one();
      throw new RangeError("inner");
    });
    throw new Error("not reached");
  };
  expect(() => scope(fail)).toThrow(RangeError);
  expect(tracker.report()).toHaveLength(0);
  using after = one();
  expect(after.disposed).toBe(false);
});
test("an async function is refused, its tensors are disposed and its rejection ends nothing", async () => {
  using tracker = trackLeaks();
  expect(() =>
    scope(async () => {
      one();
      throw new Error("nobody listens");
    }),
  ).toThrow(ArgumentError);
  await Bun.sleep(0);
  expect(tracker.report()).toHaveLength(0);
});
test("the rejection of a refused async function does not end the process", () => {
  const source = `
    import { scope } from "@heed/tensor";
    try { scope(async () => { throw new Error("nobody listens"); }); } catch {}
    await Bun.sleep(1);
    console.log("alive");`;
  const { exitCode, stdout } = Bun.spawnSync([process.execPath, "-e", source], { cwd: import.meta.dir });
  expect([exitCode, stdout.toString()]).toEqual([0, "alive\n"]);
});
test("a tensor disposed inside the scope stays disposed", () => {
  const t = scope(() => {
    const x = one();
    x[Symbol.dispose]();
    return x;
  });
  expect(t.disposed).toBe(true);
});
test("views made in a scope and returned keep their memory alive", () => {
  using tracker = trackLeaks();
  {
    using row = scope(() => ones([4, 2], { engine: "portable" }).select(0, 3));
    expect([...row.data]).toEqual([1, 1]);
  }
  expect(tracker.report()).toHaveLength(0);
});
