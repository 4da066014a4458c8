import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

/** A float32 tensor to write, row-major. */
export type Written = { readonly shape: readonly number[]; readonly data: readonly number[] };

/** The bytes of a safetensors file of float32 tensors: https://github.com/huggingface/safetensors#format. */
export function safetensors(tensors: Readonly<Record<string, Written>>): Uint8Array {
  const header: Record<string, unknown> = {};
  const data: number[] = [];
  for (const [name, { shape, data: values }] of Object.entries(tensors)) {
    header[name] = {
      dtype: "F32",
      shape,
      data_offsets: [4 * data.length, 4 * (data.length + values.length)],
    };
    data.push(...values);
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + 4 * data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(new Uint8Array(Float32Array.from(data).buffer), 8 + json.length);
  return bytes;
}

/** Writes a set: a manifest and its tensors. */
export function writeSet(
  folder: string,
  name: string,
  cases: unknown,
  tensors: Readonly<Record<string, Written>>,
): void {
  mkdirSync(dirname(join(folder, name)), { recursive: true });
  writeFileSync(join(folder, `${name}.json`), JSON.stringify(cases));
  writeFileSync(join(folder, `${name}.safetensors`), safetensors(tensors));
}

const slot = (tensor: string, shape: readonly number[]) => ({ tensor, dtype: "float32", shape });

/** A case of RMSNormalization: X = [3, 4] with root mean square 5 / sqrt(2), weights 1 and 2, epsilon 0. */
export function normCase(name: string): unknown {
  return {
    name,
    op: "RMSNormalization",
    attributes: { epsilon: 0 },
    inputs: { X: slot("X", [1, 2]), W: slot("W", [2]) },
    outputs: { Y: slot("Y", [1, 2]) },
    slots: { inputs: ["X", "W"], outputs: ["Y"] },
  };
}

/** The tensors of {@link normCase}, with the given error added to the first expected element. */
export function normTensors(error: number = 0): Readonly<Record<string, Written>> {
  const r = Math.SQRT2 / 5;
  return {
    X: { shape: [1, 2], data: [3, 4] },
    W: { shape: [2], data: [1, 2] },
    Y: { shape: [1, 2], data: [3 * r + error, 8 * r] },
  };
}
