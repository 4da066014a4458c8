/** Attention forward, of any problem of {@link attentionProblem}: kernel, composed form and scores by the oracle. */
import { attentionScores, attentionWithLse } from "@heed/tensor";
import type { AttentionProblem } from "../arbitraries/attention.ts";
import { TestkitError } from "../errors.ts";
import { attentionOracle } from "../oracle/attention.ts";
import { isVisible } from "../oracle/attention-problem.ts";
import type { ScoreStage } from "../oracle/attention-problem.ts";
import { keepFactors } from "../oracle/dropout.ts";
import {
  type AttentionViews,
  conditioningOf,
  dropoutFactor,
  placeOperands,
  placeOptions,
  poisonUnseen,
  roundedData,
  tokenMajor,
} from "./attention-problem.ts";
import { assertMeaning, bothForms, largest, results, wideOf } from "./subject.ts";
import type { Subject } from "./subject.ts";

/**
 * Output and log-sum-exp of a problem, with NaN in every key and value that no query sees. Throws a TestkitError with code
 * "mismatch", or what the library throws.
 */
export async function checkAttention(
  subject: Subject,
  problem: AttentionProblem,
  views: AttentionViews = {},
): Promise<void> {
  const { dtype } = subject;
  const { B, S, Hq, D, Dv } = problem.dims;
  const data = roundedData(problem, subject);
  const poisoned = {
    ...data,
    k: poisonUnseen(data.k, D, data.options),
    v: poisonUnseen(data.v, Dv, data.options),
  };
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const { q, k, v } = placeOperands(problem, poisoned, subject, views);
      const options = { ...placeOptions(problem, data, subject), layout: views.layout, fused: mode };
      const { output, lse } = attentionWithLse(q, k, v, options);
      return { output: tokenMajor(output, views), lse };
    }),
  );
  const { out, lse } = attentionOracle(data.q, data.k, data.v, data.options);
  const conditioning = conditioningOf(data);
  assertMeaning({
    name: "output",
    fused: fused.output,
    composed: composed.output,
    oracle: out,
    dtype,
    shape: [B, S, Hq, Dv],
    termScale: dropoutFactor(problem) * largest(data.v),
    conditioning,
  });
  assertMeaning({
    name: "lse",
    fused: fused.lse,
    composed: composed.lse,
    oracle: lse,
    dtype: wideOf(dtype),
    shape: [B, Hq, S],
    termScale: conditioning,
  });
}

/** The scores of a problem at one stage [B, Hq, S, Sk], and the output that comes with them. Throws as {@link checkAttention} does. */
export async function checkAttentionScores(
  subject: Subject,
  problem: AttentionProblem,
  stage: ScoreStage,
  views: AttentionViews = {},
): Promise<void> {
  const { B, S, Sk, Hq, Dv } = problem.dims;
  const dtype = wideOf(subject.dtype);
  const data = roundedData(problem, subject);
  const got = await results(() => {
    const { q, k, v } = placeOperands(problem, data, subject, views);
    const options = { ...placeOptions(problem, data, subject), layout: views.layout };
    const { scores, output } = attentionScores(q, k, v, { ...options, stage });
    return { scores, output: tokenMajor(output, views) };
  });
  const { out, scores } = attentionOracle(data.q, data.k, data.v, { ...data.options, scores: stage });
  const conditioning = conditioningOf(data);
  const termScale = stage === "probabilities" ? 1 : conditioning;
  const of = { fused: got.scores, composed: got.scores, shape: [B, Hq, S, Sk], dtype };
  assertMeaning({ name: stage, ...of, oracle: scores!, termScale, conditioning });
  assertMeaning({
    name: "output",
    fused: got.output,
    composed: got.output,
    oracle: out,
    dtype: subject.dtype,
    shape: [B, S, Hq, Dv],
    termScale: dropoutFactor(problem) * largest(data.v),
    conditioning,
  });
}

/**
 * With NaN in one key and its value, or with an infinity, rows that do not see the key keep every bit, and with NaN rows that see it,
 * and do not drop it, become NaN. Throws a TestkitError with code "mismatch".
 */
export async function checkHiddenKey(
  subject: Subject,
  problem: AttentionProblem,
  hidden: { readonly key: number; readonly where: "k" | "v"; readonly value: number },
): Promise<void> {
  const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
  const data = roundedData(problem, subject);
  const at = hidden.key % Sk;
  const width = hidden.where === "k" ? D : Dv;
  const poisoned = data[hidden.where].slice();
  for (let b = 0; b < B; b++)
    poisoned.fill(hidden.value, (b * Sk + at) * Hkv * width, (b * Sk + at + 1) * Hkv * width);
  const run = (rows: typeof data): Promise<{ readonly output: Float64Array; readonly lse: Float64Array }> =>
    results(() => {
      const { q, k, v } = placeOperands(problem, rows, subject, {});
      const options = { ...placeOptions(problem, data, subject), fused: subject.fused };
      const { output, lse } = attentionWithLse(q, k, v, options);
      return { output, lse };
    });
  const clean = await run(data);
  const touched = await run({ ...data, [hidden.where]: poisoned });
  for (let b = 0; b < B; b++)
    for (let h = 0; h < Hq; h++)
      for (let i = 0; i < S; i++) {
        const row = ((b * S + i) * Hq + h) * Dv;
        const outputs = [clean.output, touched.output].map((x) => x.subarray(row, row + Dv)) as [
          Float64Array,
          Float64Array,
        ];
        const lse = [clean.lse[(b * Hq + h) * S + i]!, touched.lse[(b * Hq + h) * S + i]!];
        const where = { ...hidden, b, h, i, key: at };
        const keep = keepFactors(problem.dropout, [b, h, i], Sk);
        // A NaN in a key makes every weight NaN, which shows unless all are dropped.
        const shows =
          hidden.where === "v"
            ? keep[at] !== 0
            : keep.some((factor, j) => factor !== 0 && isVisible(data.options, b, h, i, j));
        if (!isVisible(data.options, b, h, i, at)) {
          const same = outputs[0].every((x, d) => Object.is(x, outputs[1][d])) && Object.is(lse[0], lse[1]);
          if (!same) throw new TestkitError("mismatch", `a hidden ${hidden.where} changes a row`, where);
        } else if (shows && Number.isNaN(hidden.value) && !outputs[1].every(Number.isNaN)) {
          throw new TestkitError("mismatch", `a NaN in a ${hidden.where} that is seen does not show`, where);
        }
      }
}
