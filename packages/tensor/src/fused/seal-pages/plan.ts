import { ArgumentError, DTypeError, ShapeError } from "../../core/errors.ts";
import { show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { recheck } from "../../engine/recorder.ts";
import { hostIntegers, int32Only, oneEngine } from "../../ops/check.ts";
import { pageShape, type QuantisedGroups, showPages, tensorsOf } from "../quantised/pages.ts";

declare const checked: unique symbol;
/** A checked encoding of full residual pages. Only {@link planSealPages} makes one. */
export interface SealPagesPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly kPages: QuantisedGroups;
  readonly vPages: QuantisedGroups;
  readonly from: Tensor<"int32">; // [n] residual pages
  readonly to: Tensor<"int32">; // [n] pages
}
function checkNumbers(name: string, t: Tensor, count: number): void {
  const numbers = hostIntegers(t);
  for (let i = 0; i < numbers.length; i++) {
    const page = Number(numbers[i]);
    if (page < 0 || page >= count)
      throw new ArgumentError(`[sealPages] page ${page} at ${i} of ${name} is outside 0..${count - 1}`, {
        page,
        at: i,
        pages: count,
      });
  }
}
/** Checks a sealing. Throws ShapeError, DTypeError, ArgumentError (page out of range), DeviceError, DisposedError. */
export function planSealPages(
  kPages: QuantisedGroups,
  vPages: QuantisedGroups,
  from: Tensor<"int32">,
  to: Tensor<"int32">,
): SealPagesPlan {
  for (const pages of [kPages, vPages]) {
    if (pages.format !== "int4")
      throw new DTypeError(`[sealPages] seals int4 pages; got ${showPages(pages)}`, { format: pages.format });
  }
  const engine = oneEngine("sealPages", from, to, ...tensorsOf(kPages), ...tensorsOf(vPages));
  const [keys, values] = [pageShape("sealPages", kPages, "keys"), pageShape("sealPages", vPages, "values")];
  int32Only("sealPages", "from", from);
  int32Only("sealPages", "to", to);
  const same =
    keys !== undefined &&
    values !== undefined &&
    (["P", "R", "Hkv", "pageSize"] as const).every((name) => keys[name] === values[name]);
  if (!same || from.rank !== 1 || to.rank !== 1 || from.size !== to.size) {
    throw new ShapeError(
      `[sealPages] needs int4 pages of keys and values [P, Hkv, pageSize, D or Dv], from [n], to [n]; got kPages ${showPages(kPages)}, vPages ${showPages(vPages)}, from ${show(from)}, to ${show(to)}`,
      { kPages: showPages(kPages), vPages: showPages(vPages), from: from.shape, to: to.shape },
    );
  }
  if (engine.device === "cpu") {
    const check = ([source, target]: readonly Tensor[]): void => {
      checkNumbers("from", source!, keys.R);
      checkNumbers("to", target!, keys.P);
    };
    check([from, to]);
    recheck([from, to], check);
  }
  return { engine, kPages, vPages, from, to } as unknown as SealPagesPlan;
}
