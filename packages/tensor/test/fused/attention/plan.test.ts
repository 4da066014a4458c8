import {
  ArgumentError,
  attention,
  type AttentionOptions,
  attentionScores,
  attentionVjp,
  attentionWithLse,
  DeviceError,
  DisposedError,
  DTypeError,
  ones,
  ShapeError,
  type Tensor,
  tensor,
  trackLeaks,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { refuses } from "../../misuse.ts";

const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const int = (...values: number[]): Tensor<"int32"> => tensor(values, undefined, { ...on, dtype: "int32" });
const q = make(2, 3, 4, 8);
const k = make(2, 5, 2, 8);
const attend = (options: AttentionOptions) => () => attention(q, k, k, options);
const any = (x: unknown): never => x as never;
const disposed = make(2, 5, 2, 8);
disposed[Symbol.dispose]();
const detached = make(2, 5, 2, 8);
detached.data.buffer.transfer();

refuses({
  "q of rank 3": [() => attention(make(3, 4, 8), k, k), ShapeError, "rank 4"],
  "v of rank 5": [() => attention(q, k, make(2, 5, 2, 8, 1)), ShapeError, "rank 4"],
  "batches that differ": [() => attention(q, make(1, 5, 2, 8), make(1, 5, 2, 8)), ShapeError, "batch"],
  "head sizes that differ": [() => attention(q, make(2, 5, 2, 4), k), ShapeError, "head size"],
  "a head size of 0": [
    () => attention(make(1, 1, 1, 0), make(1, 1, 1, 0), make(1, 1, 1, 0)),
    ShapeError,
    "head size",
  ],
  "a value size of 0": [() => attention(q, k, make(2, 5, 2, 0)), ShapeError, "head sizes must be at least 1"],
  "query heads that are no multiple of key heads": [
    () => attention(make(1, 6, 8, 64), make(1, 4, 3, 64), make(1, 4, 3, 64)),
    ShapeError,
    "query heads must be a multiple of key heads; got q float32[1, 6, 8, 64], k float32[1, 4, 3, 64]",
  ],
  "no key heads": [() => attention(q, make(2, 5, 0, 8), make(2, 5, 0, 8)), ShapeError, "multiple"],
  "keys and values of different heads": [
    () => attention(q, k, make(2, 5, 1, 8)),
    ShapeError,
    "same heads and length",
  ],
  "keys and values of different lengths": [
    () => attention(q, k, make(2, 4, 2, 8)),
    ShapeError,
    "same heads and length",
  ],
  "a layout read the other way": [() => attention(q, k, k, { layout: "bhsd" }), ShapeError, "multiple"],
  "an unknown layout": [attend({ layout: any("sbhd") }), ArgumentError, "layout"],
  "keys of another dtype": [
    () => attention(q, any(ones([2, 5, 2, 8], { ...on, dtype: "float64" })), k),
    DTypeError,
    "one dtype",
  ],
  "integer operands": [() => attention(any(int(1)), any(int(1)), any(int(1))), DTypeError, "float dtype"],
  "a mask of too many axes": [
    attend({ attnMask: make(1, 2, 4, 3, 5) }),
    ShapeError,
    "[B, Hq, S, Sk] = [2, 4, 3, 5]",
  ],
  "a mask of another key length": [attend({ attnMask: make(3, 4) }), ShapeError, "broadcast"],
  "a mask over key heads": [attend({ attnMask: make(2, 2, 3, 5) }), ShapeError, "broadcast"],
  "an integer mask": [attend({ attnMask: int(1) }), DTypeError, "attnMask"],
  "a mask of bytes": [attend({ attnMask: ones([5], { ...on, dtype: "uint8" }) }), DTypeError, "attnMask"],
  "lengths for another batch": [attend({ kvLengths: int(5) }), ShapeError, "kvLengths"],
  "a length beyond the keys": [
    attend({ kvLengths: int(5, 6) }),
    ArgumentError,
    "kvLengths[1] must be from 0 to 5; got 6",
  ],
  "a negative length": [attend({ kvLengths: int(-1, 5) }), ArgumentError, "kvLengths[0]"],
  "lengths that are no int32": [attend({ kvLengths: any(make(2)) }), DTypeError, "kvLengths"],
  "a fractional offset": [attend({ queryOffset: 0.5 }), ArgumentError, "queryOffset"],
  "an offset of NaN": [attend({ queryOffset: NaN }), ArgumentError, "queryOffset"],
  "offsets for another batch": [attend({ queryOffset: int(1, 2, 3) }), ShapeError, "queryOffset"],
  "a word for an offset": [attend({ queryOffset: any("start") }), ArgumentError, "queryOffset"],
  "a negative window": [attend({ window: { left: -1 } }), ArgumentError, "window.left"],
  "a fractional window": [attend({ window: { right: 1.5 } }), ArgumentError, "window.right"],
  "a window of NaN": [attend({ window: { left: NaN } }), ArgumentError, "window.left"],
  "negative sink tokens": [
    attend({ sinkTokens: -1 }),
    ArgumentError,
    "sinkTokens must be a whole number of at least 0; got -1",
  ],
  "fractional sink tokens": [attend({ sinkTokens: 1.5, window: { left: 1 } }), ArgumentError, "sinkTokens"],
  "sink tokens of NaN": [attend({ sinkTokens: NaN, window: { left: 1 } }), ArgumentError, "sinkTokens"],
  "a scale of NaN": [attend({ scale: NaN }), ArgumentError, "scale"],
  "an infinite scale": [attend({ scale: Infinity }), ArgumentError, "scale"],
  "a negative softcap": [attend({ softcap: -1 }), ArgumentError, "softcap"],
  "a softcap of NaN": [attend({ softcap: NaN }), ArgumentError, "softcap"],
  "a dropout probability of 1": [
    attend({ dropout: { probability: 1, seed: 0 } }),
    ArgumentError,
    "dropout.probability must be at least 0 and below 1; got 1",
  ],
  "a negative dropout probability": [
    attend({ dropout: { probability: -0.1, seed: 0 } }),
    ArgumentError,
    "dropout.probability",
  ],
  "a dropout probability of NaN": [
    attend({ dropout: { probability: NaN, seed: 0 } }),
    ArgumentError,
    "dropout.probability",
  ],
  "dropout without a seed": [attend({ dropout: any({ probability: 0.5 }) }), ArgumentError, "dropout.seed"],
  "a negative seed": [attend({ dropout: { probability: 0.5, seed: -1 } }), ArgumentError, "dropout.seed"],
  "a seed beyond whole numbers": [
    attend({ dropout: { probability: 0, seed: 2 ** 53 } }),
    ArgumentError,
    "dropout.seed must be a whole number from 0 to 2^53 - 1; got 9007199254740992",
  ],
  "slopes for other heads": [attend({ alibiSlopes: make(2) }), ShapeError, "alibiSlopes must be [Hq] = [4]"],
  "slopes of rank 2": [attend({ alibiSlopes: make(4, 1) }), ShapeError, "alibiSlopes"],
  "integer sinks": [attend({ sinks: int(1, 2, 3, 4) }), DTypeError, "sinks"],
  "sinks for other heads": [attend({ sinks: make(5) }), ShapeError, "sinks"],
  "disposed keys": [() => attention(q, disposed, k), DisposedError, "disposed"],
  "detached values": [() => attention(q, k, detached), DisposedError, "detached"],
  "a disposed mask": [attend({ attnMask: disposed }), DisposedError, "disposed"],
  "operands of two engines": [
    () => attention(q, ones([2, 5, 2, 8], { engine: fakeEngine() }), k),
    DeviceError,
    "different engines",
  ],
  "an unknown stage": [() => attentionScores(q, k, k, { stage: any("logits") }), ArgumentError, "stage"],
  "a softmax in integers": [
    () => attentionScores(q, k, k, { softmaxDtype: any("int32") }),
    DTypeError,
    "softmax",
  ],
  "a gradient of another shape": [
    () => attentionVjp(q, k, k).backward(make(2, 3, 4, 7)),
    ShapeError,
    "the output's shape",
  ],
  "a gradient of another dtype": [
    () => attentionVjp(q, k, k).backward(any(ones([2, 3, 4, 8], { ...on, dtype: "float16" }))),
    DTypeError,
    "one dtype",
  ],
  "the gradient of a mask that is not there": [
    () => attentionVjp(q, k, k, { attnMaskGradient: true }).backward(q),
    ArgumentError,
    "attnMaskGradient",
  ],
  "the gradient of a bool mask": [
    () =>
      attentionVjp(q, k, k, {
        attnMask: ones([5], { ...on, dtype: "bool" }),
        attnMaskGradient: true,
      }).backward(q),
    ArgumentError,
    "attnMaskGradient",
  ],
});
test("a refused call leaves nothing allocated", () => {
  using tracker = trackLeaks();
  expect(() => attention(q, k, k, { attnMask: k })).toThrow(ShapeError);
  expect(() => attentionWithLse(q, k, k, { kvLengths: int(9, 9) })).toThrow(ArgumentError);
  expect(tracker.report().map((leak) => leak.bytes)).toEqual([8]); // the lengths just made
});
test("backward after its vjp was disposed is a DisposedError", () => {
  const vjp = attentionVjp(q, k, k);
  vjp[Symbol.dispose]();
  vjp[Symbol.dispose]();
  expect(vjp.output.disposed).toBe(false);
  expect(() => vjp.backward(q)).toThrow(DisposedError);
});
test("a vjp keeps its operands alive, and frees all but its output when disposed", () => {
  using tracker = trackLeaks();
  const own = make(1, 2, 1, 4);
  const slopes = make(1);
  const vjp = attentionVjp(own, own, own, { alibiSlopes: slopes, queryOffset: int(0), kvLengths: int(2) });
  own[Symbol.dispose]();
  slopes[Symbol.dispose]();
  using upstream = make(1, 2, 1, 4);
  const first = vjp.backward(upstream);
  const second = vjp.backward(upstream);
  expect([...first.q.data]).toEqual([...second.q.data]);
  for (const g of [first, second]) for (const t of [g.q, g.k, g.v]) t[Symbol.dispose]();
  vjp[Symbol.dispose]();
  const left = tracker.report().map((leak) => leak.bytes);
  expect(left.toSorted((a, b) => a - b)).toEqual([4, 4, 32, 32]); // offset, length, upstream and output
});
