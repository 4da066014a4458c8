/** Kernels do not see sink tokens: they refuse them in words, and the composed form runs. */
import "@heed/engine-cpu";
import {
  attention,
  type AttentionBackwardPlan,
  type AttentionPlan,
  getEngine,
  ones,
  pagedAttention,
  randn,
  scope,
  tensor,
  toFloat64,
  UnsupportedError,
} from "@heed/tensor";
import { Block, writeScores } from "@heed/tensor/native";
import { expect, test } from "bun:test";

const engine = getEngine("cpu");
const ints = (...values: number[]) => tensor(values, undefined, { engine, dtype: "int32" });
const last = { isCausal: true, window: { left: 1 }, sinkTokens: 2 } as const;
const require = "require";

test.skipIf(engine.fused.attention === undefined)(
  "every kernel of attention refuses sink tokens in words",
  () => {
    scope(() => {
      const q = randn([1, 6, 2, 4], { engine, seed: 1 });
      const pages = ones([3, 2, 2, 4], { engine });
      const table = {
        queryIndptr: ints(0, 6),
        indptr: ints(0, 3),
        indices: ints(0, 1, 2),
        lengths: ints(6),
        slots: ints(-1, -1, -1, -1, -1, -1),
        epoch: 0,
      };
      const output = attention(q, q, q, last);
      const runs = [
        (o: object) => attention(q, q, q, { ...o, fused: require }),
        (o: object) =>
          pagedAttention(q.squeeze(0), { kPages: pages, vPages: pages, table }, { ...o, fused: require }),
      ];
      for (const run of runs) {
        expect(() => run(last)).toThrow(UnsupportedError);
        expect(() => run(last)).toThrow("it has no sinkTokens behind a window; got 2");
        run({ isCausal: true, sinkTokens: 2 }); // without a window there is nothing to refuse
      }
      const rules = { sinkTokens: 2 };
      const refused = "it has no sinkTokens behind a window; got 2";
      expect(engine.fused.attentionBackward!.refusal({ rules } as AttentionBackwardPlan)).toBe(refused);
      expect(() => writeScores(new Block(new ArrayBuffer(2048)), 0, rules as AttentionPlan["rules"])).toThrow(
        refused,
      );
      expect(toFloat64(output)).toEqual(toFloat64(attention(q, q, q, { ...last, fused: "off" })));
    });
  },
);
