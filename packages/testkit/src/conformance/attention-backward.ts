/** Attention backward, of any problem of {@link attentionProblem}: kernel and composed form by the oracle. */
import { attentionVjp } from "@heed/tensor";
import type { AttentionProblem } from "../arbitraries/attention.ts";
import { attentionBackwardOracle } from "../oracle/attention.ts";
import { sumToMaskShape } from "../oracle/mask.ts";
import {
  type AttentionViews,
  conditioningOf,
  dropoutFactor,
  placeOperands,
  placeOptions,
  poisonClosed,
  poisonUnseen,
  roundedData,
  tokenMajor,
} from "./attention-problem.ts";
import { assertMeaning, bothForms, largest, results } from "./subject.ts";
import type { Subject } from "./subject.ts";

/**
 * Gradients of a problem, for a random upstream gradient, with NaN in every key and value that no query sees and in the query and the
 * upstream gradient of every row that sees nothing. Throws a TestkitError with code "mismatch", or what the library throws.
 */
export async function checkAttentionBackward(
  subject: Subject,
  problem: AttentionProblem,
  views: AttentionViews = {},
): Promise<void> {
  const { dtype } = subject;
  const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
  const data = roundedData(problem, subject);
  const poisoned = {
    q: poisonClosed(data.q, D, data.options),
    k: poisonUnseen(data.k, D, data.options),
    v: poisonUnseen(data.v, Dv, data.options),
    dOut: poisonClosed(data.dOut, Dv, data.options),
  };
  const isBias = data.mask?.kind === "additive";
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const { q, k, v, dOut } = placeOperands(problem, poisoned, subject, views);
      const options = { ...placeOptions(problem, data, subject), layout: views.layout, fused: mode };
      const { backward } = attentionVjp(q, k, v, { ...options, attnMaskGradient: isBias });
      const g = backward(dOut);
      return {
        dq: tokenMajor(g.q, views),
        dk: tokenMajor(g.k, views),
        dv: tokenMajor(g.v, views),
        dMask: g.attnMask,
        dSinks: g.sinks,
      };
    }),
  );
  const oracle = attentionBackwardOracle(data.q, data.k, data.v, data.dOut, data.options);
  const conditioning = conditioningOf(data);
  const { scale = 1 / Math.sqrt(D) } = problem;
  // dp is a sum of Dv products; what it is multiplied with below gives the size of each gradient's terms.
  const factor = dropoutFactor(problem);
  const dp = factor * Math.sqrt(Dv) * largest(data.dOut) * largest(data.v);
  const judge = (
    name: keyof typeof fused,
    expected: Float64Array,
    shape: readonly number[],
    termScale: number,
  ): void =>
    assertMeaning({
      name,
      fused: fused[name],
      composed: composed[name],
      oracle: expected,
      dtype,
      shape,
      termScale,
      conditioning,
    });
  judge("dq", oracle.dq, [B, S, Hq, D], Math.abs(scale) * dp * largest(data.k));
  judge("dk", oracle.dk, [B, Sk, Hkv, D], Math.abs(scale) * dp * largest(data.q));
  judge("dv", oracle.dv, [B, Sk, Hkv, Dv], factor * largest(data.dOut));
  if (data.sinks) judge("dSinks", oracle.dSinks, [Hq], dp);
  if (data.mask && isBias) {
    const { shape } = data.mask;
    // Each row brings the rounding of its own stored out, through delta: independent errors, which add as a root of their number.
    const rows =
      (B * Hq * S) /
      Math.max(
        1,
        shape.slice(0, -1).reduce((n, d) => n * d, 1),
      );
    judge(
      "dMask",
      sumToMaskShape(oracle.dBias, shape, problem.dims),
      shape,
      Math.sqrt(Math.max(1, rows)) * dp,
    );
  }
}
