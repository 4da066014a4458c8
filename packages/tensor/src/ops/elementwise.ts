import type { DType, FloatDType } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { broadcastShapes } from "../core/shape.ts";
import { allocate, computed, show, type Tensor } from "../core/tensor.ts";
import type { BinaryOp, UnaryOp } from "../engine/engine.ts";
import { floatOnly, oneEngine, sameDType } from "./check.ts";
import { full } from "./create.ts";

/** Which dtypes an operation takes and which one it gives. */
interface Rule {
  readonly takes: "float" | "number" | "bool" | "mask";
  readonly gives: "same" | "bool";
}
const FLOAT: Rule = { takes: "float", gives: "same" };
const NUMBER: Rule = { takes: "number", gives: "same" };
const UNARY: Readonly<Record<UnaryOp, Rule>> = {
  neg: NUMBER,
  abs: NUMBER,
  exp: FLOAT,
  log: FLOAT,
  sqrt: FLOAT,
  rsqrt: FLOAT,
  square: NUMBER,
  reciprocal: FLOAT,
  tanh: FLOAT,
  sigmoid: FLOAT,
  silu: FLOAT,
  isFinite: { takes: "float", gives: "bool" },
  not: { takes: "bool", gives: "bool" },
};
const COMPARE: Rule = { takes: "number", gives: "bool" };
const LOGIC: Rule = { takes: "bool", gives: "bool" };
const MASK: Rule = { takes: "mask", gives: "same" };
const BINARY: Readonly<Record<BinaryOp, Rule>> = {
  add: NUMBER,
  sub: NUMBER,
  mul: NUMBER,
  div: FLOAT,
  max: NUMBER,
  min: NUMBER,
  pow: FLOAT,
  equal: COMPARE,
  less: COMPARE,
  lessEqual: COMPARE,
  and: LOGIC,
  or: LOGIC,
  maskZero: MASK,
  maskNegInf: MASK,
};
const ARITHMETIC = new Set<DType>(["float64", "float32", "float16", "bfloat16", "int32", "int64"]);

function checkTakes(op: string, takes: Rule["takes"], x: Tensor): void {
  if (takes === "float") floatOnly(op, x);
  else if (takes === "bool" ? x.dtype !== "bool" : !ARITHMETIC.has(x.dtype)) {
    throw new DTypeError(
      `[${op}] takes ${takes === "bool" ? "bool" : "float, int32 or int64"} tensors; got ${show(x)}; convert with cast()`,
      {
        dtype: x.dtype,
      },
    );
  }
}
/** out = op(x) elementwise, in a new tensor. Throws DTypeError, DisposedError. */
export function unary(op: UnaryOp, x: Tensor): Tensor {
  const rule = UNARY[op];
  const engine = oneEngine(op, x);
  checkTakes(op, rule.takes, x);
  return computed(allocate(engine, rule.gives === "bool" ? "bool" : x.dtype, x.shape), (out) => {
    if (out.size > 0) engine.unary(op, x, out);
  });
}
/**
 * out = op(a, b) elementwise with broadcasting; a number stands for a tensor of a's dtype. In a new tensor, or in `out` (which may
 * be `a` or `b` itself). Throws DTypeError, ShapeError, DeviceError, DisposedError.
 */
export function binary(op: BinaryOp, a: Tensor, b: Tensor | number, out?: Tensor): Tensor {
  if (typeof b === "number") {
    using wide = full([], b, { dtype: a.dtype, engine: a.engine });
    return binary(op, a, wide, out);
  }
  const rule = BINARY[op];
  const engine = oneEngine(op, a, b, out);
  if (rule.takes === "mask") {
    floatOnly(op, a);
    checkTakes(op, "bool", b);
  } else {
    checkTakes(op, rule.takes, a);
    sameDType(op, a, b);
  }
  const shape = broadcastShapes(a.shape, b.shape, op);
  const dtype = rule.gives === "bool" ? "bool" : a.dtype;
  const compute = (target: Tensor): void => {
    using x = a.broadcastTo(target.shape);
    using y = b.broadcastTo(target.shape);
    if (target.size > 0) engine.binary(op, x, y, target);
  };
  if (out === undefined) return computed(allocate(engine, dtype, shape), compute);
  if (out.dtype !== dtype)
    throw new DTypeError(`[${op}] out must be ${dtype}; got ${show(out)}`, { dtype: out.dtype });
  compute(out);
  return out;
}
type Operand<D extends DType> = Tensor<NoInfer<D>> | number;
/** a + b with broadcasting. See {@link binary} for operands and errors; so for the others. */
export function add<D extends DType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("add", a, b) as Tensor<D>;
}
/** a - b with broadcasting. */
export function sub<D extends DType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("sub", a, b) as Tensor<D>;
}
/** a * b with broadcasting. */
export function mul<D extends DType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("mul", a, b) as Tensor<D>;
}
/** a / b with broadcasting; floats only. */
export function div<D extends FloatDType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("div", a, b) as Tensor<D>;
}
/** The larger of a and b, elementwise; NaN where either is NaN. Of 0 and -0 it may give either. */
export function maximum<D extends DType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("max", a, b) as Tensor<D>;
}
/** The smaller of a and b, elementwise; NaN where either is NaN. Of 0 and -0 it may give either. */
export function minimum<D extends DType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("min", a, b) as Tensor<D>;
}
/** a to the power b; floats only. */
export function pow<D extends FloatDType>(a: Tensor<D>, b: Operand<D>): Tensor<D> {
  return binary("pow", a, b) as Tensor<D>;
}
/** a where the bool mask is true, else 0; a NaN that is not selected is gone. */
export function maskZero<D extends FloatDType>(a: Tensor<D>, mask: Tensor<"bool">): Tensor<D> {
  return binary("maskZero", a, mask) as Tensor<D>;
}
/** a where the bool mask is true, else -Infinity. */
export function maskNegInf<D extends FloatDType>(a: Tensor<D>, mask: Tensor<"bool">): Tensor<D> {
  return binary("maskNegInf", a, mask) as Tensor<D>;
}
/** -x. */
export function neg<D extends DType>(x: Tensor<D>): Tensor<D> {
  return unary("neg", x) as Tensor<D>;
}
/** e^x. */
export function exp<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("exp", x) as Tensor<D>;
}
/** Natural logarithm. */
export function log<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("log", x) as Tensor<D>;
}
/** Square root. */
export function sqrt<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("sqrt", x) as Tensor<D>;
}
/** Hyperbolic tangent. */
export function tanh<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("tanh", x) as Tensor<D>;
}
/** 1 / (1 + e^-x). */
export function sigmoid<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("sigmoid", x) as Tensor<D>;
}
/** x * sigmoid(x) (Elfwing, Uchibe, Doya 2017, arXiv:1702.03118). */
export function silu<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  return unary("silu", x) as Tensor<D>;
}
