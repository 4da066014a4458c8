/** The conformance checks on kernels that are wrong on purpose: each fault must be found. */
import {
  type AttentionBackwardPlan,
  type AttentionPlan,
  copyInto,
  type DType,
  fill,
  type FusedOps,
  type KvAppendPlan,
  type LinearPlan,
  type NormRopeAppendPlan,
  mul,
  type PagedAttentionPlan,
  type Pages,
  type QuantisedGroups,
  type QuantisedRows,
  type RmsNormBackwardPlan,
  type RmsNormPlan,
  type RopePlan,
  scope,
  type ScoreRules,
  type SealPagesPlan,
  Tensor,
  zeros,
} from "@heed/tensor";
import { attentionProblem, type TestkitError } from "@heed/testkit";
import { checkAttention, checkHiddenKey } from "@heed/testkit/conformance/attention";
import { checkAttentionBackward } from "@heed/testkit/conformance/attention-backward";
import { checkLinear, linearProblem } from "@heed/testkit/conformance/linear";
import { checkNormRopeAppend, normRopeAppendProblem } from "@heed/testkit/conformance/norm-rope-append";
import { appendProblem, checkKvAppend, checkQuantisedAppend } from "@heed/testkit/conformance/kv-append";
import { checkSealPages, sealProblem } from "@heed/testkit/conformance/seal-pages";
import { checkPagedAttention, pagedProblem } from "@heed/testkit/conformance/paged-attention";
import { checkRmsNorm, checkRmsNormBackward, rmsNormProblem } from "@heed/testkit/conformance/rms-norm";
import { checkRope, ropeProblem } from "@heed/testkit/conformance/rope";
import type { Subject } from "@heed/testkit/conformance/subject";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { attentionComposed } from "../../src/fused/attention/composed.ts";
import { attentionBackwardComposed } from "../../src/fused/attention/composed-backward.ts";
import { kvAppendComposed } from "../../src/fused/kv-append/composed.ts";
import { linearComposed } from "../../src/fused/linear/composed.ts";
import { normRopeAppendComposed } from "../../src/fused/norm-rope-append/composed.ts";
import { pagedAttentionComposed } from "../../src/fused/paged-attention/composed.ts";
import { rmsNormBackwardComposed, rmsNormComposed } from "../../src/fused/rms-norm/composed.ts";
import { sealPagesComposed } from "../../src/fused/seal-pages/composed.ts";
import { ropeComposed } from "../../src/fused/rope/composed.ts";
import { fakeEngine } from "../engine/fake.ts";

type Run<Plan> = (plan: Plan) => void;
const dtype = "float32";
const runs = { numRuns: 150, seed: 1 };

const attend: Run<AttentionPlan> = (plan) => void attentionComposed(plan);
/** A subject whose engine runs one operation by `run`. */
function subjectOf<Plan>(op: keyof FusedOps, run: Run<Plan>): Subject {
  const refusal = (): undefined => undefined;
  const attention = { refusal, run: attend }; // what the backward pass starts from
  return { engine: fakeEngine({ attention, [op]: { refusal, run } }), dtype, fused: "require" };
}
/** Registers, for each faulty kernel, a test that one of the problems shows it; and one that the right kernel passes. */
function finds<Plan, P>(
  op: keyof FusedOps,
  problems: fc.Arbitrary<P>,
  check: (subject: Subject, problem: P) => Promise<void>,
  right: Run<Plan>,
  faults: Readonly<Record<string, Run<Plan>>>,
): void {
  const verdict = (run: Run<Plan>) => {
    const subject = subjectOf(op, run);
    return fc.assert(
      fc.asyncProperty(problems, (p) => check(subject, p)),
      { ...runs, endOnFailure: true },
    );
  };
  describe(`the check of ${op}`, () => {
    test("passes the composed form", async () => {
      await verdict(right);
    });
    for (const [name, run] of Object.entries(faults)) {
      test(`finds ${name}`, async () => {
        const found = await verdict(run).then(
          () => undefined,
          (error: Error) => error.cause as TestkitError,
        );
        expect(found?.code).toBe("mismatch");
      });
    }
  });
}
/** The same plan with other rules. */
const ruled =
  <P extends { readonly rules: ScoreRules }>(run: Run<P>, change: Partial<ScoreRules>): Run<P> =>
  (plan) =>
    run({ ...plan, rules: { ...plan.rules, ...change } });
/** One part in a thousand is added to a result's first element. */
function nudge(t: Tensor | undefined): void {
  if (t === undefined) return;
  scope(() => {
    const data = new Float32Array(t.storage.buffer!);
    data[t.offset] = data[t.offset]! * 1.001;
  });
}
const ruleFaults = <P extends { readonly rules: ScoreRules }>(run: Run<P>): Record<string, Run<P>> => ({
  "a softcap that is dropped": ruled(run, { softcap: 0 }),
  "a left bound that is dropped": ruled(run, { windowLeft: -1 }),
  "sink tokens that are dropped": ruled(run, { sinkTokens: 0 }),
  "a sink token too many": (plan) => {
    const { sinkTokens } = plan.rules;
    ruled(run, { sinkTokens: sinkTokens > 0 ? sinkTokens + 1 : 0 })(plan);
  },
  "causality that is dropped": ruled(run, { windowRight: -1 }),
  "slopes that are dropped": ruled(run, { alibiSlopes: undefined }),
  "sinks that are dropped": ruled(run, { sinks: undefined }),
});
const maskFaults = <P extends { readonly rules: ScoreRules }>(run: Run<P>): Record<string, Run<P>> => ({
  ...ruleFaults(run),
  "a mask that is dropped": ruled(run, { mask: undefined }),
  "lengths that are dropped": ruled(run, { kvLengths: undefined }),
  "an offset that is dropped": ruled(run, { queryOffset: "end" }),
  "weights that are not dropped": ruled(run, { dropout: undefined }),
  "another seed": (plan) => {
    const { dropout } = plan.rules;
    run({
      ...plan,
      rules: { ...plan.rules, dropout: dropout && { ...dropout, key: [dropout.key[0] ^ 1, dropout.key[1]] } },
    });
  },
});

finds<AttentionPlan, Parameters<typeof checkAttention>[1]>(
  "attention",
  attentionProblem(),
  checkAttention,
  attend,
  {
    ...maskFaults(attend),
    "an output off by a thousandth": (plan) => {
      attend(plan);
      nudge(plan.out);
    },
    "an lse off by a thousandth": (plan) => {
      attend(plan);
      nudge(plan.lse);
    },
    "an lse that is not written": (plan) => {
      attend(plan);
      fill(plan.lse!, NaN);
    },
    "query heads that read the key heads in turns": (plan) => {
      const { Hq, Hkv } = plan.dims;
      for (let h = 0; h < Hq; h++) {
        const one = (t: Tensor, head: number): Tensor<"float32"> =>
          t.slice(2, head, head + 1) as Tensor<"float32">;
        const row = (t: Tensor | undefined): Tensor | undefined => t && t.slice(0, h, h + 1);
        const { rules, lse } = plan;
        attend({
          ...plan,
          dims: { ...plan.dims, Hq: 1, Hkv: 1 },
          q: one(plan.q, h),
          k: one(plan.k, h % Hkv),
          v: one(plan.v, h % Hkv),
          out: one(plan.out, h),
          lse: lse && lse.slice(1, h, h + 1),
          rules: {
            ...rules,
            mask: rules.mask && rules.mask.slice(1, h, h + 1),
            alibiSlopes: row(rules.alibiSlopes),
            sinks: row(rules.sinks),
          },
        });
      }
    },
  },
);
const hidden = fc.record({
  problem: attentionProblem(),
  key: fc.nat({ max: 20 }),
  where: fc.constantFrom("k" as const, "v" as const),
});
finds<AttentionPlan, { problem: Parameters<typeof checkHiddenKey>[1]; key: number; where: "k" | "v" }>(
  "attention",
  hidden,
  (subject, p) => checkHiddenKey(subject, p.problem, { ...p, value: NaN }),
  attend,
  {
    "a hidden value that is multiplied by zero": (plan) => {
      attend(plan);
      scope(() => {
        // What 0 * NaN does to every row of the head.
        const bad = Array.from(new Float32Array(plan.v.contiguous().storage.buffer!)).some(Number.isNaN);
        if (bad) fill(plan.out, NaN);
      });
    },
  },
);
const back: Run<AttentionBackwardPlan> = attentionBackwardComposed;
const { "sinks that are dropped": _, ...backFaults } = maskFaults(back); // their part is in the lse already; a dSinks of zero stands for it
finds<AttentionBackwardPlan, Parameters<typeof checkAttentionBackward>[1]>(
  "attentionBackward",
  attentionProblem(),
  checkAttentionBackward,
  back,
  {
    ...backFaults,
    ...Object.fromEntries(
      (["dq", "dk", "dv", "dMask", "dSinks"] as const).map((name): [string, Run<AttentionBackwardPlan>] => [
        `a ${name} of zero`,
        (plan) => {
          back(plan);
          const t = plan[name];
          if (t !== undefined) fill(name === "dMask" ? t.slice(0, 0, 1) : t, 0);
        },
      ]),
    ),
  },
);
const paged: Run<PagedAttentionPlan> = pagedAttentionComposed;
finds<PagedAttentionPlan, Parameters<typeof checkPagedAttention>[1]>(
  "pagedAttention",
  pagedProblem(),
  checkPagedAttention,
  paged,
  {
    ...ruleFaults(paged),
    "pages that are read whole": (plan) => {
      const { lengths, indptr } = plan.view.table;
      const full = Int32Array.from(
        lengths.data,
        (_, n) => (indptr.data[n + 1]! - indptr.data[n]!) * plan.dims.pageSize,
      );
      lengths.data.set(full);
      paged(plan);
    },
  },
);
const append: Run<KvAppendPlan> = kvAppendComposed;
finds<KvAppendPlan, Parameters<typeof checkKvAppend>[1]>("kvAppend", appendProblem(), checkKvAppend, append, {
  "values that are not written": (plan) => append({ ...plan, v: plan.k, vPages: plan.kPages }),
  "skipped rows that are written": (plan) => {
    plan.slots.data.forEach((slot, t) => void (plan.slots.data[t] = Math.max(0, slot)));
    append(plan);
  },
});
const together: Run<NormRopeAppendPlan> = normRopeAppendComposed;
finds<NormRopeAppendPlan, Parameters<typeof checkNormRopeAppend>[1]>(
  "normRopeAppend",
  normRopeAppendProblem(),
  checkNormRopeAppend,
  together,
  {
    "a norm that is dropped": (plan) => together({ ...plan, norm: undefined }),
    "a key norm that is dropped": (plan) =>
      together({ ...plan, norm: plan.norm && { ...plan.norm, k: undefined } }),
    "a unit offset that is dropped": (plan) =>
      together({ ...plan, norm: plan.norm && { ...plan.norm, unitOffset: false } }),
    "a rotation that is dropped": (plan) => together({ ...plan, rope: undefined }),
    "the other pairing": (plan) =>
      together({
        ...plan,
        rope: plan.rope && { ...plan.rope, pairing: plan.rope.pairing === "half" ? "interleaved" : "half" },
      }),
    "values that are not written": (plan) => together({ ...plan, v: plan.k, vPages: plan.kPages }),
    "skipped rows that are written": (plan) => {
      plan.slots.data.forEach((slot, t) => void (plan.slots.data[t] = Math.max(0, slot)));
      together(plan);
    },
    "one unit in the last place": (plan) => {
      together(plan);
      scope(() => {
        const bits = new Int32Array(plan.out.storage.buffer!);
        bits[plan.out.offset]! ^= 1;
      });
    },
  },
);
/** Zeros of the same shape. */
const like = <D extends DType>(t: Tensor<D>): Tensor<D> =>
  zeros(t.shape, { engine: t.engine, dtype: t.dtype }) as Tensor as Tensor<D>;
/** The plan with quantised pages changed. */
const withPages =
  (change: (pages: Pages) => Pages, of: "kPages" | "vPages"): Run<PagedAttentionPlan> =>
  (plan) =>
    paged({ ...plan, view: { ...plan.view, [of]: change(plan.view[of]) } });
const shifted = (t: Tensor): Tensor<"float32"> => mul(t as Tensor<"float32">, 1.001);
for (const format of ["int8", "float8e4m3", "int4"] as const) {
  describe(`over ${format} pages`, () => {
    finds<PagedAttentionPlan, Parameters<typeof checkPagedAttention>[1]>(
      "pagedAttention",
      pagedProblem({ pageSizes: [1, 4, 32] }),
      (subject, p) => checkPagedAttention(subject, p, format),
      paged,
      {
        ...ruleFaults(paged),
        "scales of keys off by a thousandth": withPages(
          (pages) => (pages instanceof Tensor ? pages : { ...pages, scales: shifted(pages.scales) }),
          "kPages",
        ),
        "scales of values off by a thousandth": withPages(
          (pages) => (pages instanceof Tensor ? pages : { ...pages, scales: shifted(pages.scales) }),
          "vPages",
        ),
        ...(format === "int4" && {
          "zeros that are dropped": withPages(
            (pages) => ({
              ...(pages as QuantisedGroups),
              zeros: like((pages as QuantisedGroups).zeros),
            }),
            "vPages",
          ),
          "a residual page in place of another": (plan) => {
            const { indices } = plan.view.table;
            const { codes } = plan.view.kPages as QuantisedGroups;
            const first = codes.shape[0]!;
            indices.data.forEach((page, i) => {
              if (page > first && page < 0x7fffffff) indices.data[i] = first;
            });
            paged(plan);
          },
        }),
      },
    );
  });
}
for (const format of ["int8", "float8e4m3"] as const) {
  describe(`into ${format} pages`, () => {
    const off =
      (name: "codes" | "scales", of: "kPages" | "vPages"): Run<KvAppendPlan> =>
      (plan) => {
        const pages = plan[of] as QuantisedRows;
        append({ ...plan, [of]: { ...pages, [name]: pages[name].contiguous() } });
        const at = plan.slots.data.findIndex((slot) => slot >= 0);
        if (at >= 0) pages[name].data[0] = 7 - pages[name].data[0]!;
      };
    finds<KvAppendPlan, Parameters<typeof checkKvAppend>[1]>(
      "kvAppend",
      appendProblem(),
      (subject, p) => checkQuantisedAppend(subject, p, format),
      append,
      {
        "a wrong code": off("codes", "kPages"),
        "a wrong scale": off("scales", "vPages"),
        "rows encoded together": (plan) => {
          // One scale for all heads of a token, as if the row were all of them.
          append(plan);
          const { scales } = plan.kPages as QuantisedRows;
          if (scales.shape[1]! > 1) copyInto(scales.slice(1, 0, 1), scales.slice(1, 1, 2));
        },
      },
    );
  });
}
const seal: Run<SealPagesPlan> = sealPagesComposed;
finds<SealPagesPlan, Parameters<typeof checkSealPages>[1]>("sealPages", sealProblem(), checkSealPages, seal, {
  "zeros of values that are not written": (plan) =>
    seal({
      ...plan,
      vPages: {
        ...plan.vPages,
        scales: plan.vPages.scales.contiguous(),
        zeros: like(plan.vPages.zeros),
      },
    }),
  "the first residual page in place of another": (plan) =>
    seal({ ...plan, to: plan.to.contiguous(), from: like(plan.from) }),
});
finds<RopePlan, Parameters<typeof checkRope>[1]>("rope", ropeProblem(), checkRope, ropeComposed, {
  "the other pairing": (plan) =>
    ropeComposed({ ...plan, pairing: plan.pairing === "half" ? "interleaved" : "half" }),
  "a gradient that turns forward": (plan) => ropeComposed({ ...plan, inverse: false }),
  "positions that are ignored": (plan) =>
    ropeComposed({
      ...plan,
      positions: plan.positions.slice(1, 0, 1).broadcastTo(plan.positions.shape) as Tensor<"int32">,
    }),
});
finds<RmsNormPlan, Parameters<typeof checkRmsNorm>[1]>(
  "rmsNorm",
  rmsNormProblem(),
  checkRmsNorm,
  rmsNormComposed,
  {
    "a unit offset that is dropped": (plan) => rmsNormComposed({ ...plan, unitOffset: false }),
    "an eps that is dropped": (plan) => rmsNormComposed({ ...plan, eps: 0 }),
    "a weight that is dropped": (plan) => rmsNormComposed({ ...plan, weight: undefined }),
  },
);
finds<RmsNormBackwardPlan, Parameters<typeof checkRmsNormBackward>[1]>(
  "rmsNormBackward",
  rmsNormProblem(),
  checkRmsNormBackward,
  rmsNormBackwardComposed,
  {
    "a unit offset that is dropped": (plan) => rmsNormBackwardComposed({ ...plan, unitOffset: false }),
    "a weight gradient of zero": (plan) => {
      rmsNormBackwardComposed(plan);
      if (plan.dWeight !== undefined) fill(plan.dWeight, 0);
    },
  },
);
finds<LinearPlan, Parameters<typeof checkLinear>[1]>("linear", linearProblem(), checkLinear, linearComposed, {
  "a bias that is dropped": (plan) => linearComposed({ ...plan, bias: undefined }),
  "one element off by a thousandth": (plan) => {
    linearComposed(plan);
    nudge(plan.out);
  },
});
