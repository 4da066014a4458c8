/** Attention by the kernels of Hopper's tensor cores, whose warpgroups have roles: against the oracle, and over several tiles against the CPU. */
import "@heed/engine-cpu";
import {
  type AttentionOptions,
  attentionWithLse,
  type Engine,
  getEngine,
  randn,
  scope,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { attentionSuite, pagedAttentionSuite } from "@heed/testkit/conformance";
import { encodeArray } from "@heed/testkit";
import { elements } from "@heed/testkit/conformance/subject";
import { describe, expect, test } from "bun:test";
import "../../src/index.ts";
import { emulatedMissing } from "../support.ts";
import { hopper } from "./engines.ts";

const NAME = emulatedMissing === undefined ? hopper() : "";
if (emulatedMissing === undefined) {
  for (const suite of [attentionSuite, pagedAttentionSuite]) suite(NAME, { forms: ["require"], runs: 8 });
}

/** Lengths of a problem, with more than one tile of 128 keys and of 128 or 192 rows. */
interface Problem {
  readonly D: number;
  readonly Dv: number;
  readonly S: number;
  readonly Sk: number;
  readonly G: number;
  readonly lengths?: readonly number[];
  readonly options: AttentionOptions;
}
const causal = { isCausal: true };
const PROBLEMS: readonly Problem[] = [
  { D: 64, Dv: 64, S: 200, Sk: 300, G: 2, options: causal },
  { D: 40, Dv: 24, S: 70, Sk: 400, G: 3, options: {} },
  { D: 96, Dv: 96, S: 150, Sk: 270, G: 1, options: { ...causal, window: { left: 60 } } },
  { D: 128, Dv: 128, S: 300, Sk: 300, G: 1, options: causal },
  { D: 128, Dv: 128, S: 1, Sk: 500, G: 4, options: causal },
  { D: 128, Dv: 64, S: 90, Sk: 260, G: 3, lengths: [260, 0], options: {} },
  {
    D: 128,
    Dv: 128,
    S: 140,
    Sk: 520,
    G: 2,
    lengths: [513, 129],
    options: { ...causal, window: { left: 0 } },
  },
  { D: 128, Dv: 128, S: 130, Sk: 260, G: 1, options: { window: { left: 20, right: 100 }, scale: -0.2 } },
  { D: 192, Dv: 128, S: 140, Sk: 300, G: 1, options: causal },
  { D: 256, Dv: 256, S: 140, Sk: 200, G: 2, options: causal },
];
/** Output and lse, as they are on the engine; `edit` may change the values [B, Sk, Hkv, Dv]. */
async function run(
  engine: Engine,
  dtype: "bfloat16" | "float16",
  p: Problem,
  edit: (v: Float64Array) => void = () => undefined,
): Promise<{ readonly out: Float64Array; readonly lse: Float64Array }> {
  const { out, lse } = scope(() => {
    const B = p.lengths?.length ?? 1;
    const numbers = (shape: number[], seed: number): Float64Array =>
      toFloat64(randn(shape, { seed, dtype, engine: "cpu" }));
    const place = (values: Float64Array, shape: number[]): Tensor<"bfloat16" | "float16"> =>
      tensor(encodeArray(dtype, values), shape, { dtype, engine });
    const v = numbers([B, p.Sk, 1, p.Dv], 3);
    edit(v);
    const all = attentionWithLse(
      place(numbers([B, p.S, p.G, p.D], 1), [B, p.S, p.G, p.D]),
      place(numbers([B, p.Sk, 1, p.D], 2), [B, p.Sk, 1, p.D]),
      place(v, [B, p.Sk, 1, p.Dv]),
      {
        ...p.options,
        fused: "require",
        ...(p.lengths && { kvLengths: tensor([...p.lengths], [B], { dtype: "int32", engine }) }),
      },
    );
    return { out: all.output, lse: all.lse };
  });
  const result = { out: await elements(out), lse: await elements(lse) };
  for (const t of [out, lse]) t[Symbol.dispose]();
  return result;
}
function close(a: Float64Array, b: Float64Array, tolerance: number): void {
  expect(a.length).toBe(b.length);
  const far = a.findIndex((x, i) => !(Object.is(x, b[i]) || Math.abs(x - b[i]!) <= tolerance));
  expect(far === -1 ? "close" : `[${far}] ${a[far]}, expected ${b[far]}`).toBe("close");
}

describe.skipIf(emulatedMissing !== undefined)("attention by warpgroups", () => {
  for (const dtype of ["bfloat16", "float16"] as const)
    test.each(PROBLEMS)(`of ${dtype} over several tiles equals the CPU's, %#`, async (p) => {
      const [ours, theirs] = [await run(getEngine(NAME), dtype, p), await run(getEngine("cpu"), dtype, p)];
      close(ours.out, theirs.out, dtype === "bfloat16" ? 2 ** -6 : 2 ** -9);
      close(ours.lse, theirs.lse, 1e-3);
    });
  test("leaves out hidden values that are not finite, and keeps those that are seen", async () => {
    const p: Problem = { D: 64, Dv: 64, S: 300, Sk: 300, G: 1, options: causal };
    // Row i sees keys 0 .. i: rows below 129 see none of these, the rows behind see one after the other.
    const edit = (v: Float64Array): void => {
      v[129 * 64] = Number.NaN;
      v[200 * 64 + 1] = Infinity;
      v[299 * 64 + 2] = -Infinity;
    };
    const [ours, theirs] = [
      await run(getEngine(NAME), "bfloat16", p, edit),
      await run(getEngine("cpu"), "bfloat16", p, edit),
    ];
    close(ours.out, theirs.out, 2 ** -6);
    expect(ours.out.slice(0, 129 * 64).every(Number.isFinite)).toBe(true);
    expect(ours.out[129 * 64]).toBeNaN();
    expect(ours.out[200 * 64 + 1]).toBe(Infinity);
    expect(ours.out[199 * 64 + 1]).toBeFinite();
  });
});
