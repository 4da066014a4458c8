import {
  contiguousStrides,
  type DType,
  type Engine,
  type FloatDType,
  type Pages,
  type QuantisedGroups,
  type QuantisedRows,
  type Shape,
} from "@heed/tensor";
import { HeldColumns, HeldTensor } from "./held.ts";
import { GROUP, type GroupLayout, isQuantised, type ResidualDType } from "./layout.ts";

/** A tensor of pages: axis 0 is the page, and they lie side by side in memory. */
export type HeldPages = HeldTensor<DType>;
/** Keys or values of one layer. `pages` makes its tensors anew where a scope has disposed the last ones. */
export interface Plane {
  readonly pages: () => Pages;
  /** Memory in which a page has a part, codes before their scales; none where it is another plane's. */
  readonly owned: readonly HeldPages[];
  /** Of "int4" planes: the rows that are not encoded yet, [R, Hkv, pageSize, width]. */
  readonly residual: HeldPages | undefined;
  readonly [Symbol.dispose]: () => void;
}
/** How much memory a plane takes. */
export interface PlaneSize {
  readonly pages: number; // P, the null page included
  readonly residualPages: number; // R
  readonly width: number;
}

/** Strides of [pages, Hkv, pageSize, ...rest] in the group's order of memory. */
function stridesOf({ numKvHeads, pageSize, layout }: GroupLayout, shape: Shape): number[] {
  if (layout === "head-major") return contiguousStrides(shape);
  const width = shape[3] ?? 1;
  return [pageSize * numKvHeads * width, width, numKvHeads * width, 1].slice(0, shape.length);
}
/** Memory that is freed as a whole, also when not all of it could be had. */
class Memory {
  readonly #engine: Engine;
  readonly all: HeldPages[] = [];
  constructor(engine: Engine) {
    this.#engine = engine;
  }
  hold<D extends DType>(dtype: D, shape: Shape, strides?: number[]): HeldTensor<D> {
    const held = new HeldTensor(this.#engine, dtype, shape, strides);
    this.all.push(held as unknown as HeldPages);
    return held;
  }
  [Symbol.dispose](): void {
    for (const held of this.all) held[Symbol.dispose]();
  }
}
/** Memory for the keys or values of one layer. Throws OutOfMemoryError, and then holds none. */
export function allocatePlane(
  engine: Engine,
  g: GroupLayout,
  size: PlaneSize,
  role: "keys" | "values",
): Plane {
  const memory = new Memory(engine);
  try {
    return g.residualDtype === undefined ? rowPlane(memory, g, size) : groupPlane(memory, g, size, role);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}
/** Floats [P, Hkv, pageSize, width], or codes with the scale [P, Hkv, pageSize] of each row. */
function rowPlane(memory: Memory, g: GroupLayout, { pages: P, width }: PlaneSize): Plane {
  const { dtype, numKvHeads, pageSize } = g;
  const hold = <D extends DType>(of: D, ...row: number[]): HeldTensor<D> => {
    const shape = [P, numKvHeads, pageSize, ...row];
    return memory.hold(of, shape, stridesOf(g, shape));
  };
  const dispose = (): void => memory[Symbol.dispose]();
  const rest = { owned: memory.all, residual: undefined, [Symbol.dispose]: dispose };
  if (!isQuantised(dtype)) {
    const floats = hold(dtype as FloatDType, width);
    return { pages: () => floats.tensor, ...rest };
  }
  const [codes, scales] = [hold("uint8", width), hold("float32")];
  const pages = (): QuantisedRows => ({ format: dtype, codes: codes.tensor, scales: scales.tensor });
  return { pages, ...rest };
}
/** The shapes of `QuantisedGroups`; scales and zeros are head-major in either order of memory. */
function groupPlane(memory: Memory, g: GroupLayout, size: PlaneSize, role: "keys" | "values"): Plane {
  const { numKvHeads: Hkv, pageSize } = g;
  const { pages: P, residualPages: R, width } = size;
  const groups = Math.ceil(width / GROUP);
  const shape = [P, Hkv, pageSize, groups * (GROUP / 2)];
  const each = role === "keys" ? [Math.ceil(pageSize / GROUP), width] : [groups, pageSize];
  const codes = memory.hold("uint8", shape, stridesOf(g, shape));
  const scales = memory.hold("float32", [P, Hkv, ...each]);
  const zeros = memory.hold("float32", [P, Hkv, ...each]);
  const rows = [R, Hkv, pageSize, width];
  const residual = memory.hold(g.residualDtype as ResidualDType, rows, stridesOf(g, rows));
  const pages = (): QuantisedGroups => ({
    format: "int4",
    codes: codes.tensor,
    scales: scales.tensor,
    zeros: zeros.tensor,
    residual: residual.tensor,
  });
  return {
    pages,
    owned: memory.all.slice(0, 3),
    residual: residual as unknown as HeldPages,
    [Symbol.dispose]: () => memory[Symbol.dispose](),
  };
}
/** The first `width` numbers of the rows of another plane, in its memory. */
export function columnsOf({ owned, pages }: Plane, width: number): Plane {
  const columns = new HeldColumns(owned[0] as HeldTensor<FloatDType | "uint8">, width);
  return {
    pages: () => {
      const whole = pages();
      return "format" in whole ? ({ ...whole, codes: columns.tensor } as QuantisedRows) : columns.tensor;
    },
    owned: [],
    residual: undefined,
    [Symbol.dispose]: () => columns[Symbol.dispose](),
  };
}
