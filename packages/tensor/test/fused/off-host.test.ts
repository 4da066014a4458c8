import {
  getEngine,
  kvAppend,
  type QuantisedGroups,
  registerEngine,
  scope,
  tensor,
  zeros,
} from "@heed/tensor";
import {
  attentionBackwardSuite,
  attentionSuite,
  kvAppendSuite,
  linearSuite,
  normRopeAppendSuite,
  pagedAttentionSuite,
  rmsNormSuite,
  ropeSuite,
  sealPagesSuite,
} from "@heed/testkit/conformance";
import { offHostEngine } from "@heed/testkit/conformance/off-host";
import { expect, test } from "bun:test";
import { engines } from "../engines.ts";

// The composed forms are the meaning on every engine, so none may look at values that the host does not see.
if (engines.includes("cpu")) {
  registerEngine("off-host", offHostEngine);
  const options = { forms: ["off"], runs: 10 } as const;
  for (const suite of [
    attentionSuite,
    attentionBackwardSuite,
    pagedAttentionSuite,
    kvAppendSuite,
    sealPagesSuite,
    normRopeAppendSuite,
    linearSuite,
    rmsNormSuite,
    ropeSuite,
  ])
    suite("off-host", options);
  test("rows of int4 pages go to the residual pages that their slots name, the last of two to one, and a skipped one nowhere", async () => {
    const residuals = ["cpu", "off-host"].map((name) => {
      const engine = getEngine(name);
      return scope(() => {
        const pages = (): QuantisedGroups => ({
          format: "int4",
          codes: zeros([1, 2, 4, 16], { dtype: "uint8", engine }),
          scales: zeros([1, 2, 1, 4], { engine }),
          zeros: zeros([1, 2, 1, 4], { engine }),
          residual: zeros([2, 2, 4, 4], { engine }),
        });
        const rows = tensor(
          Float32Array.from({ length: 32 }, (_, i) => i + 1),
          [4, 2, 4],
          { engine },
        );
        const slots = tensor(Int32Array.of(10, -1, 5, 10), undefined, { dtype: "int32", engine });
        const [k, v] = [pages(), pages()];
        kvAppend(rows, rows, k, v, slots, { fused: "off" });
        return k.residual;
      });
    });
    const [host, hidden] = await Promise.all(residuals.map((t) => t.read()));
    expect(hidden).toEqual(host!);
    expect([...hidden!].filter((x) => x !== 0)).toHaveLength(16);
    for (const t of residuals) t[Symbol.dispose]();
  });
}
