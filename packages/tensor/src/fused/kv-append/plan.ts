import type { FloatDType } from "../../core/dtype.ts";
import { ArgumentError, DTypeError, ShapeError } from "../../core/errors.ts";
import { show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { recheck } from "../../engine/recorder.ts";
import { floatOnly, hostIntegers, int32Only, oneEngine, sameDType } from "../../ops/check.ts";
import {
  type Pages,
  type PageShape,
  pageShape,
  showPages,
  storageOf,
  tensorsOf,
} from "../quantised/pages.ts";

declare const checked: unique symbol;
/** A checked write of new rows into pages. Only {@link planKvAppend} makes one. */
export interface KvAppendPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly k: Tensor<FloatDType>; // [T, Hkv, D], any strides
  readonly v: Tensor<FloatDType>; // [T, Hkv, Dv]
  readonly kPages: Pages; // [P, Hkv, pageSize, D]
  readonly vPages: Pages; // [P, Hkv, pageSize, Dv]
  readonly slots: Tensor<"int32">; // [T]; page * pageSize + row, -1: skip
  readonly pageSize: number;
  /** The slot at which the pages that are written to begin: those of "int4" are its residual pages, numbered from P on. */
  readonly firstSlot: number;
}
/** Throws ArgumentError unless every slot is -1 or within first .. end - 1. */
function checkSlots(slots: Tensor, first: number, end: number): void {
  const data = hostIntegers(slots);
  for (let t = 0; t < data.length; t++) {
    const slot = data[t] as number;
    if (slot === -1 || (slot >= first && slot < end)) continue;
    const range = first === 0 ? `-1..${end - 1}` : `${first}..${end - 1}, the residual pages`;
    throw new ArgumentError(`[kvAppend] slot ${slot} of row ${t} is outside ${range}`, {
      slot,
      row: t,
      slots: end,
    });
  }
}
/** Throws DTypeError unless keys and values are stored alike. */
function sameStorage(kPages: Pages, vPages: Pages): void {
  if (storageOf(kPages) === storageOf(vPages)) return;
  throw new DTypeError(
    `[kvAppend] operands must have one dtype; got ${showPages(kPages)} and ${showPages(vPages)}`,
    { dtypes: [storageOf(kPages), storageOf(vPages)] },
  );
}
/** Checks an append. Throws ShapeError, DTypeError, ArgumentError (slot out of range), DeviceError, DisposedError. */
export function planKvAppend(
  k: Tensor,
  v: Tensor,
  kPages: Pages,
  vPages: Pages,
  slots: Tensor<"int32">,
): KvAppendPlan {
  const engine = oneEngine("kvAppend", k, v, ...tensorsOf(kPages), ...tensorsOf(vPages), slots);
  floatOnly("kvAppend", k);
  floatOnly("kvAppend", v);
  const [keys, values] = [pageShape("kvAppend", kPages, "keys"), pageShape("kvAppend", vPages, "values")];
  int32Only("kvAppend", "slots", slots);
  sameDType("kvAppend", k, v);
  sameStorage(kPages, vPages);
  const fits = (t: Tensor, pages: PageShape): boolean =>
    t.rank === 3 && t.shape[0] === slots.size && t.shape[1] === pages.Hkv && t.shape[2] === pages.width;
  const shaped =
    keys !== undefined &&
    values !== undefined &&
    fits(k, keys) &&
    fits(v, values) &&
    (["P", "R", "Hkv", "pageSize"] as const).every((name) => keys[name] === values[name]);
  if (!shaped) {
    throw new ShapeError(
      `[kvAppend] needs k [T, Hkv, D], v [T, Hkv, Dv], pages [P, Hkv, pageSize, D or Dv], slots [T]; got k ${show(k)}, v ${show(v)}, kPages ${showPages(kPages)}, vPages ${showPages(vPages)}, slots ${show(slots)}`,
      { k: k.shape, v: v.shape, kPages: showPages(kPages), vPages: showPages(vPages), slots: slots.shape },
    );
  }
  if (slots.rank !== 1)
    throw new ShapeError(`[kvAppend] slots must be int32[T]; got ${show(slots)}`, { slots: slots.shape });
  const { P, R, pageSize } = keys;
  const firstSlot = storageOf(kPages) === "int4" ? P * pageSize : 0;
  if (engine.device === "cpu") {
    const end = (P + R) * pageSize;
    checkSlots(slots, firstSlot, end);
    recheck([slots], ([given]) => checkSlots(given!, firstSlot, end));
  }
  return { engine, k, v, kPages, vPages, slots, pageSize, firstSlot } as unknown as KvAppendPlan;
}
