import type { FloatDType } from "../../core/dtype.ts";
import { ArgumentError, ShapeError } from "../../core/errors.ts";
import { show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { recheck } from "../../engine/recorder.ts";
import { floatOnly, hostIntegers, int32Only, oneEngine, sameDType } from "../../ops/check.ts";

declare const checked: unique symbol;
/** A checked write of new rows into pages. Only {@link planKvAppend} makes one. */
export interface KvAppendPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly k: Tensor<FloatDType>; // [T, Hkv, D], any strides
  readonly v: Tensor<FloatDType>; // [T, Hkv, Dv]
  readonly kPages: Tensor<FloatDType>; // [P, Hkv, pageSize, D]
  readonly vPages: Tensor<FloatDType>; // [P, Hkv, pageSize, Dv]
  readonly slots: Tensor<"int32">; // [T]; page * pageSize + row, -1: skip
}
function checkSlots(slots: Tensor, rows: number): void {
  const data = hostIntegers(slots);
  for (let t = 0; t < data.length; t++) {
    const slot = data[t] as number;
    if (slot < -1 || slot >= rows) {
      throw new ArgumentError(`[kvAppend] slot ${slot} of row ${t} is outside -1..${rows - 1}`, {
        slot,
        row: t,
        slots: rows,
      });
    }
  }
}
/** Checks an append. Throws ShapeError, DTypeError, ArgumentError (slot out of range), DeviceError, DisposedError. */
export function planKvAppend(
  k: Tensor,
  v: Tensor,
  kPages: Tensor,
  vPages: Tensor,
  slots: Tensor<"int32">,
): KvAppendPlan {
  const engine = oneEngine("kvAppend", k, v, kPages, vPages, slots);
  for (const t of [k, v, kPages, vPages]) floatOnly("kvAppend", t);
  int32Only("kvAppend", "slots", slots);
  sameDType("kvAppend", k, v);
  sameDType("kvAppend", kPages, vPages);
  const [P, Hkv, pageSize] = kPages.shape as unknown as [number, number, number];
  const row = (t: Tensor, pages: Tensor): boolean =>
    t.rank === 3 &&
    pages.rank === 4 &&
    t.shape[0] === slots.size &&
    t.shape[1] === Hkv &&
    t.shape[2] === pages.shape[3];
  if (
    !row(k, kPages) ||
    !row(v, vPages) ||
    vPages.shape.slice(0, 3).join() !== kPages.shape.slice(0, 3).join()
  ) {
    throw new ShapeError(
      `[kvAppend] needs k [T, Hkv, D], v [T, Hkv, Dv], pages [P, Hkv, pageSize, D or Dv], slots [T]; got k ${show(k)}, v ${show(v)}, kPages ${show(kPages)}, vPages ${show(vPages)}, slots ${show(slots)}`,
      { k: k.shape, v: v.shape, kPages: kPages.shape, vPages: vPages.shape, slots: slots.shape },
    );
  }
  if (slots.rank !== 1)
    throw new ShapeError(`[kvAppend] slots must be int32[T]; got ${show(slots)}`, { slots: slots.shape });
  if (engine.device === "cpu") {
    checkSlots(slots, P * pageSize);
    recheck([slots], ([given]) => checkSlots(given!, P * pageSize));
  }
  return { engine, k, v, kPages, vPages, slots } as unknown as KvAppendPlan;
}
