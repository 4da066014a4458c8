import "@heed/engine-cpu";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  getEngine,
  type HeedError,
  memoryUsage,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { GroupedQueryAttention, type GroupedQueryAttentionOptions } from "../src/index.ts";
import { engines } from "./engines.ts";

const SMALL: GroupedQueryAttentionOptions = {
  hiddenSize: 8,
  numHeads: 4,
  numKvHeads: 2,
  rope: {},
  bias: { q: true, k: false, v: false, o: false },
};
type ErrorClass = new (message: string) => HeedError;
const OPTIONS: readonly (readonly [ErrorClass, string, Partial<GroupedQueryAttentionOptions>])[] = [
  [ArgumentError, "hiddenSize must be a whole number of at least 1; got 0", { hiddenSize: 0 }],
  [ArgumentError, "numHeads must be a whole number of at least 1; got 1.5", { numHeads: 1.5 }],
  [ArgumentError, "numKvHeads must be a whole number of at least 1; got NaN", { numKvHeads: NaN }],
  [ShapeError, "numHeads must be a multiple of numKvHeads; got 4 and 3", { numKvHeads: 3 }],
  [ShapeError, "hiddenSize 9 is not a multiple of numHeads 4; give headDim", { hiddenSize: 9 }],
  [ArgumentError, "headDim must be a whole number of at least 1; got -2", { headDim: -2 }],
  [ArgumentError, "rotaryDim must be even; got 3", { headDim: 3 }],
  [ArgumentError, "rope.rotaryDim must be at most headDim 2; got 4", { rope: { rotaryDim: 4 } }],
  [ArgumentError, "window.left must be a whole number of at least 0; got -1", { window: { left: -1 } }],
  [ArgumentError, "window.right must be a whole number of at least 0; got 0.5", { window: { right: 0.5 } }],
  [ArgumentError, "softcap must be a finite number above 0; got 0", { softcap: 0 }],
  [ArgumentError, "scale must be finite; got NaN", { scale: NaN }],
  [ArgumentError, "eps must be a finite number of at least 0; got -1", { qkNorm: { eps: -1 } }],
  [
    ArgumentError,
    'qkNorm.over must be "head" or "projection"; got all',
    { qkNorm: { over: "all" as never } },
  ],
  [ArgumentError, "bias.v must be false", { tiedValue: true, bias: { q: true, k: true, v: true, o: true } }],
  [ArgumentError, "they must agree; got true, false and false", { mergedQkv: true }],
  [ArgumentError, "contextSize must be a whole number of at least 1; got 0", { contextSize: 0 }],
  [ArgumentError, "mergedQkv needs one input", { mergedQkv: true, bias: false, contextSize: 4 }],
  [ArgumentError, "rotateContext needs contextSize", { rotateContext: true }],
  [ArgumentError, "rotateContext needs rope", { rotateContext: true, contextSize: 4, rope: null }],
  [ArgumentError, "layerIndex must be a whole number of at least 0; got -1", { layerIndex: -1 }],
];

describe.each(engines)("errors of GroupedQueryAttention on %s", (name) => {
  const engine = getEngine(name);

  test.each(OPTIONS)("%p: %s", (kind, message, options) => {
    const before = memoryUsage().storages;
    const make = (): unknown => GroupedQueryAttention.create({ ...SMALL, ...options, engine });
    expect(make).toThrow(kind);
    expect(make).toThrow(message);
    expect(memoryUsage().storages).toBe(before);
  });
  test("a seed that is no 32-bit number is refused", () => {
    for (const seed of [-1, 2 ** 32, 0.5])
      expect(() => GroupedQueryAttention.create({ ...SMALL, engine, seed })).toThrow("seed");
  });
  test("a parameter that is missing, unknown, misshapen, an integer, elsewhere or disposed is named", () => {
    scope(() => {
      const good = new Map<string, Tensor>(GroupedQueryAttention.create({ ...SMALL, engine }).parameters);
      const build = (change: Record<string, Tensor | undefined>): (() => unknown) => {
        const given = new Map(good);
        for (const [key, t] of Object.entries(change))
          if (t === undefined) given.delete(key);
          else given.set(key, t);
        return () => GroupedQueryAttention.fromParameters(SMALL, given);
      };
      expect(build({ "k_proj.weight": undefined })).toThrow(
        'parameter "k_proj.weight" of shape [4, 8] is missing',
      );
      expect(build({ "q_proj.bias": undefined })).toThrow('"q_proj.bias"');
      const merged = { ...SMALL, bias: false, mergedQkv: true };
      expect(() => GroupedQueryAttention.fromParameters(merged, good)).toThrow(
        'no parameter "q_proj.weight" under these options; they call for qkv_proj.weight, o_proj.weight',
      );
      expect(build({ "k_proj.bias": zeros([4], { engine }) })).toThrow('no parameter "k_proj.bias"');
      expect(build({ sinks: zeros([4], { engine }) })).toThrow(ArgumentError);
      expect(build({ "v_proj.weight": zeros([8, 4], { engine }) })).toThrow(ShapeError);
      expect(build({ "v_proj.weight": zeros([8, 4], { engine }) })).toThrow(
        '"v_proj.weight" must be [4, 8]; got float32[8, 4]',
      );
      expect(build({ "o_proj.weight": zeros([8, 8], { engine, dtype: "int32" }) })).toThrow(DTypeError);
      const gone = zeros([8, 8], { engine });
      gone[Symbol.dispose]();
      expect(build({ "o_proj.weight": gone })).toThrow("disposed");
      const other = engines.find((e) => e !== name);
      if (other !== undefined)
        expect(build({ "o_proj.weight": zeros([8, 8], { engine: other }) })).toThrow(DeviceError);
      expect(GroupedQueryAttention.fromParameters(SMALL, Object.fromEntries(good)).config.headDim).toBe(2);
    });
  });
  test("a wrong rank, size, dtype or place of the input, and options that do not fit it, are typed errors", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, engine });
      const x = zeros([2, 3, 8], { engine });
      const int32 = (shape: number[]): Tensor<"int32"> => zeros(shape, { engine, dtype: "int32" });
      for (const run of [layer.forward.bind(layer), layer.vjp.bind(layer)] as ((
        x: Tensor<"float32">,
        options?: object,
      ) => unknown)[]) {
        expect(() => run(zeros([3, 8], { engine }))).toThrow("x must be [B, S, 8]; got float32[3, 8]");
        expect(() => run(zeros([1, 2, 3, 8], { engine }))).toThrow(ShapeError);
        expect(() => run(zeros([2, 3, 7], { engine }))).toThrow("x must be [B, S, 8]; got float32[2, 3, 7]");
        expect(() => run(zeros([2, 3, 8], { engine, dtype: "float16" }) as never)).toThrow(DTypeError);
        expect(() => run(zeros([2, 3, 8], { engine, dtype: "int32" }) as never)).toThrow(DTypeError);
        expect(() => run(x, { positions: int32([3, 2]) })).toThrow(ShapeError);
        expect(() => run(x, { positions: int32([2, 3, 1]) })).toThrow(ShapeError);
        expect(() => run(x, { positions: -1 })).toThrow(ArgumentError);
        expect(() => run(x, { positions: tensor([-1, 0, 1], [3], { dtype: "int32", engine }) })).toThrow(
          "-1",
        );
        expect(() => run(x, { attnMask: zeros([3, 4], { engine }) })).toThrow("attnMask");
        expect(() => run(x, { attnMask: int32([3, 3]) })).toThrow(DTypeError);
        expect(() => run(x, { kvLengths: int32([3]) })).toThrow("kvLengths");
        expect(() => run(x, { kvLengths: tensor([1, 4], [2], { dtype: "int32", engine }) })).toThrow(
          "kvLengths[1] must be from 0 to 3; got 4",
        );
        const other = engines.find((e) => e !== name);
        if (other !== undefined) expect(() => run(zeros([2, 3, 8], { engine: other }))).toThrow(DeviceError);
      }
      layer[Symbol.dispose]();
      layer[Symbol.dispose]();
      expect(() => layer.forward(x)).toThrow("disposed");
    });
  });
});
