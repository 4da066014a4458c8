/** What the type checker must refuse: each @ts-expect-error fails the check when its line compiles. */
import {
  add,
  attention,
  cast,
  concat,
  div,
  exp,
  maskZero,
  matmul,
  ones,
  pagedAttention,
  randn,
  rope,
  scope,
  softmax,
  tensor,
  type Tensor,
  zeros,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import "../engines.ts";

test("operands of two dtypes do not compile, and are refused when they come all the same", () => {
  scope(() => {
    const single = ones([2, 2], { engine: "portable" });
    const double = ones([2, 2], { engine: "portable", dtype: "float64" });
    const whole = ones([2, 2], { engine: "portable", dtype: "int32" });
    // @ts-expect-error float32 and float64
    expect(() => add(single, double)).toThrow("one dtype");
    // @ts-expect-error float32 and float64
    expect(() => matmul(single, double)).toThrow("one dtype");
    const half = ones([2, 2], { engine: "portable", dtype: "float16" });
    // @ts-expect-error float16 and float32; the other way round, 16-bit weights beside float32, compiles
    expect(() => matmul(half, single)).toThrow("one dtype");
    const product: Tensor<"float32"> = matmul(single, half);
    expect(product.dtype).toBe("float32");
    // @ts-expect-error int32 has no exponential
    expect(() => exp(whole)).toThrow("float dtype");
    // @ts-expect-error int32 has no quotient
    expect(() => div(whole, 2)).toThrow("float dtype");
    // @ts-expect-error a mask is bool
    expect(() => maskZero(single, single)).toThrow("bool");
    // @ts-expect-error int32 has no softmax
    expect(() => softmax(whole)).toThrow("float dtype");
    // @ts-expect-error float32 and float64 in one list
    expect(() => concat<"float32">([single, double])).toThrow("one dtype");
    // @ts-expect-error no such dtype
    expect(() => zeros([1], { engine: "portable", dtype: "float8" })).toThrow();
  });
});
test("attention of two dtypes does not compile", () => {
  scope(() => {
    const q = ones([1, 2, 2, 4], { engine: "portable" });
    const half = ones([1, 2, 2, 4], { engine: "portable", dtype: "float16" });
    // @ts-expect-error float32 queries, float16 keys
    expect(() => attention(q, half, q)).toThrow("one dtype");
    // @ts-expect-error no such layout
    expect(() => attention(q, q, q, { layout: "sbhd" })).toThrow("layout");
    // @ts-expect-error no such mode
    expect(() => attention(q, q, q, { fused: "always" })).toThrow("fused");
    // @ts-expect-error lengths are int32
    expect(() => attention(q, q, q, { kvLengths: ones([1], { engine: "portable" }) })).toThrow("int32");
    // @ts-expect-error no such pairing
    expect(() => rope(q, q, q, { pairing: "pairs" })).toThrow();
    // @ts-expect-error a view has pages and a table
    expect(() => pagedAttention(q, {})).toThrow();
  });
});
test("results have the dtype of what they come from", () => {
  scope(() => {
    const half: Tensor<"float16"> = cast(randn([2, 2], { engine: "portable" }), "float16");
    const sum: Tensor<"float16"> = add(half, 1);
    const plain: Tensor<"float32"> = tensor([1, 2], undefined, { engine: "portable" });
    const bits: Uint16Array = ones([1], { engine: "portable", dtype: "bfloat16" }).data;
    // @ts-expect-error the dtype follows from the options, not from where the result goes
    const whole: Tensor<"int32"> = ones([1], { engine: "portable" });
    expect(whole.dtype as string).toBe("float32");
    // @ts-expect-error float16 is not float32
    const wrong: Tensor<"float32"> = sum;
    expect<unknown[]>([wrong.dtype, plain.dtype, bits.length]).toEqual(["float16", "float32", 1]);
  });
});
