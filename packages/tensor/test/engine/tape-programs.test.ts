import {
  binary,
  type BinaryOp,
  concat,
  copyInto,
  fill,
  getEngine,
  linear,
  matmul,
  rmsNorm,
  recordTape,
  scope,
  softmax,
  sum,
  type Tensor,
  tensor,
  unary,
  type UnaryOp,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../engines.ts";
import { bits, normal } from "./tape-support.ts";

type F = Tensor<"float32">;
const N = 3; // variables are N x N, so that every operation takes any of them, transposed too

/** One statement on variables a, b and the target: pure ones return what to copy there, others write in place. */
const STATEMENTS: Readonly<Record<string, (a: F, b: F, target: F) => Tensor | void>> = {
  ...Object.fromEntries(
    (["tanh", "sigmoid", "neg", "abs"] satisfies UnaryOp[]).map((op) => [op, (a: F) => unary(op, a)]),
  ),
  ...Object.fromEntries(
    (["add", "sub", "mul", "max"] satisfies BinaryOp[]).map((op) => [op, (a: F, b: F) => binary(op, a, b)]),
  ),
  "add in place": (a, _b, target) => void binary("add", target, binary("add", a, 0), target),
  "times a number": (a) => binary("mul", a, 0.5),
  matmul: (a, b) => matmul(a, b),
  softmax: (a) => softmax(a),
  "row sums": (a) => binary("sub", a, sum(a, { axes: [1], keepDims: true })),
  linear: (a, b) => linear(a, b, { bias: b.select(0, 1) }),
  "linear, composed": (a, b) => linear(a, b, { fused: "off" }),
  norm: (a, b) => rmsNorm(a, b.select(1, 0)),
  shift: (a, b) => concat([a.slice(0, 1), b.slice(0, 0, 1)] as F[]),
  "a row set": (_a, _b, target) => fill(target.select(0, 2), -1),
  "a constant": (a) => tensor([[1, 2, 3]], undefined, { engine: a.engine }).broadcastTo([N, N]),
};
const variable = fc.record({ index: fc.nat(3), transposed: fc.boolean() });
const statement = fc.record({
  name: fc.constantFrom(...Object.keys(STATEMENTS)),
  a: variable,
  b: variable,
  target: fc.nat(3),
});
type Statement = typeof statement extends fc.Arbitrary<infer S> ? S : never;

function execute(program: readonly Statement[], variables: readonly F[]): void {
  const view = ({ index, transposed }: Statement["a"]): F =>
    transposed ? (variables[index]!.transpose() as F) : variables[index]!;
  for (const { name, a, b, target } of program) {
    const result = STATEMENTS[name]!(view(a), view(b), variables[target]!);
    // A copy first: what is copied may be a view of the target.
    if (result !== undefined) copyInto(binary("add", result, 0), variables[target]!);
  }
}

test.each(engines)("a replay of any program does to its inputs what the program does, on %s", (name) => {
  const engine = getEngine(name);
  const inputs = (seed: number): F[] =>
    [0, 1, 2, 3].map((i) => normal(engine, "float32", [N, N], seed + i) as F);
  fc.assert(
    fc.property(fc.array(statement, { minLength: 1, maxLength: 12 }), fc.nat(1e6), (program, seed) => {
      scope(() => {
        const variables = inputs(seed);
        const { tape } = recordTape(engine, () => execute(program, variables));
        const expected = inputs(seed);
        execute(program, expected);
        expect(variables.map(bits)).toEqual(expected.map(bits));
        for (const again of [7, 77]) {
          const given = inputs(seed + again);
          given.forEach((t, i) => copyInto(t, variables[i]!));
          tape.replay();
          execute(program, given);
          expect(variables.map(bits)).toEqual(given.map(bits));
        }
      });
    }),
    { numRuns: 150 },
  );
});
