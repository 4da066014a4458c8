import type { Tensor } from "@heed/tensor";
import { assertClose, compare, toFloat64 } from "@heed/testkit";
import type { VectorTensor } from "@heed/testkit";

/** A result and what it should be. */
export interface Produced {
  /** As the manifest calls it: "Y", "grad_q", ... */
  readonly name: string;
  readonly value: Tensor;
  readonly expected: VectorTensor;
  /** Allowed difference as a share of the largest expected magnitude; 0 is to the bit. */
  readonly rel: number;
}

/** How one result compares with what was expected. */
export interface Check {
  readonly name: string;
  /** Largest difference as a share of the largest expected magnitude. */
  readonly relative: number;
  readonly allowed: number;
  /** What is wrong, in words; absent when nothing is. */
  readonly fault?: string;
}

const show = ({ dtype, shape }: { readonly dtype: string; readonly shape: readonly number[] }): string =>
  `${dtype}[${shape.join(", ")}]`;

/** Reads a result back and compares dtype, shape and elements: NaNs and infinities first, then the largest difference. */
export async function judge({ name, value, expected, rel }: Produced): Promise<Check> {
  if (show(value) !== show(expected)) {
    const fault = `${name}: got ${show(value)}, expected ${show(expected)}`;
    return { name, relative: Infinity, allowed: rel, fault };
  }
  const { dtype, shape } = value;
  const actual = toFloat64({ dtype, shape, data: await value.read() } as VectorTensor);
  const wanted = toFloat64(expected);
  const { relative } = compare(actual, wanted);
  try {
    assertClose(actual, wanted, { rel, name, shape });
    return { name, relative, allowed: rel };
  } catch (error) {
    return { name, relative, allowed: rel, fault: (error as Error).message };
  }
}
