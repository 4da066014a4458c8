/** What is not finite in the upstream gradient of a row stays among the row and the keys that it sees. */
import {
  attentionVjp,
  type FusedMode,
  getEngine,
  recordTape,
  scope,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { createRng, keepFactors } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../../engines.ts";

const subjects = engines.flatMap((name) => {
  const modes: FusedMode[] =
    getEngine(name).fused.attentionBackward === undefined ? ["off"] : ["off", "require"];
  return modes.map((fused) => ({ name, fused }));
});
const [S, Hq, Hkv, D] = [6, 4, 2, 5];
const G = Hq / Hkv;
const options = { isCausal: true, window: { left: 2 }, queryOffset: 0 } as const;
const sees = (i: number, j: number): boolean => j <= i && j >= i - 2;

const problem = fc.record({
  row: fc.nat({ max: S - 1 }),
  head: fc.nat({ max: Hq - 1 }),
  component: fc.nat({ max: D - 1 }),
  value: fc.constantFrom(NaN, Infinity, -Infinity),
  dropout: fc.constantFrom(undefined, { probability: 0.4, seed: 7 }),
  seed: fc.nat({ max: 999 }),
});
type Gradients = Readonly<Record<"q" | "k" | "v", Float64Array>>;

describe.each(subjects)("attention backward on $name, fused: $fused", ({ name, fused }) => {
  const engine = getEngine(name);
  const rows = (values: Float64Array, heads: number): Tensor<"float64"> =>
    tensor(values, [1, S, heads, D], { engine, dtype: "float64" });
  /** Gradients with `value` put into dOut at one place. */
  function gradients(p: typeof problem extends fc.Arbitrary<infer P> ? P : never, value?: number): Gradients {
    return scope(() => {
      const rng = createRng(p.seed);
      const [q, k, v, dOut] = [Hq, Hkv, Hkv, Hq].map((heads) => rng.normalArray(S * heads * D));
      if (value !== undefined) dOut![(p.row * Hq + p.head) * D + p.component] = value;
      const vjp = attentionVjp(rows(q!, Hq), rows(k!, Hkv), rows(v!, Hkv), {
        ...options,
        dropout: p.dropout,
        fused,
      });
      const g = vjp.backward(rows(dOut!, Hq));
      return { q: toFloat64(g.q), k: toFloat64(g.k), v: toFloat64(g.v) };
    });
  }
  test("keys that the row does not see, and other rows, keep every bit", () => {
    const property = fc.property(problem, (p) => {
      const [clean, dirty] = [gradients(p), gradients(p, p.value)];
      const kvHead = Math.floor(p.head / G);
      for (let i = 0; i < S; i++) {
        for (let h = 0; h < Hq; h++) {
          if (i === p.row && h === p.head) continue;
          const at = (i * Hq + h) * D;
          expect(dirty.q.subarray(at, at + D)).toEqual(clean.q.subarray(at, at + D));
        }
        for (let h = 0; h < Hkv; h++) {
          const at = (i * Hkv + h) * D;
          if (h === kvHead && sees(p.row, i)) continue;
          for (const part of ["k", "v"] as const)
            expect(dirty[part].subarray(at, at + D)).toEqual(clean[part].subarray(at, at + D));
        }
      }
    });
    fc.assert(property, { numRuns: 60 });
  });
  test("keys that it sees get it back, in the components where it stands for values", () => {
    const property = fc.property(problem, (p) => {
      const [clean, dirty] = [gradients(p), gradients(p, p.value)];
      const kvHead = Math.floor(p.head / G);
      const keeps = keepFactors(p.dropout, [0, p.head, p.row], S);
      for (let j = 0; j < S; j++) {
        if (!sees(p.row, j)) continue;
        const at = (j * Hkv + kvHead) * D;
        for (let d = 0; d < D; d++) {
          // A dropped weight keeps it out of a value.
          const takes = d === p.component && keeps[j]! > 0;
          if (takes) expect(dirty.v[at + d]).toBe(p.value);
          else expect(dirty.v[at + d]).toBeCloseTo(clean.v[at + d]!, 10);
        }
        const key = dirty.k.subarray(at, at + D);
        // A row that drops all that it sees has no gradient.
        if (keeps.every((factor, seen) => factor === 0 || !sees(p.row, seen)))
          expect(key).toEqual(clean.k.subarray(at, at + D));
        else if (Number.isNaN(p.value)) expect(key.every(Number.isNaN)).toBe(true);
      }
    });
    fc.assert(property, { numRuns: 60 });
  });
  test("a tape that was recorded over finite gradients replays others", () => {
    scope(() => {
      const rng = createRng(1);
      const [q, k, v, dOut] = [Hq, Hkv, Hkv, Hq].map((heads) =>
        rows(rng.normalArray(S * heads * D), heads),
      ) as [Tensor<"float64">, Tensor<"float64">, Tensor<"float64">, Tensor<"float64">];
      const run = (): Tensor => attentionVjp(q, k, v, { ...options, fused }).backward(dOut).v;
      const { outputs, tape } = recordTape(engine, run);
      dOut.data[0] = NaN; // of row 0, which sees key 0 alone
      tape.replay();
      const replayed = [...toFloat64(outputs)];
      expect(replayed).toEqual([...toFloat64(run())]);
      expect(replayed.flatMap((x, i) => (Number.isNaN(x) ? [i] : []))).toEqual([0]);
    });
  });
});
