/** The decode benches of `bun run gpu:check`: what they read, and which kernel they time. */
import { cudaEmulated, cudaRefusal } from "@heed/engine-cuda";
import { cast, Tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { openNative } from "../../packages/engine-cuda/src/devices.ts";
import { createCudaEngine } from "../../packages/engine-cuda/src/engine.ts";
import { benchOf, pool } from "../gpu-check/benches.ts";
import { type DecodeShape, nameOf, SHAPES, TINY_SHAPES } from "../gpu-check/shapes.ts";

/** By storage, and whether values are a prefix of the keys. */
const KERNELS: Readonly<Record<string, string>> = {
  bfloat16: "heed_cuda_decode_bf16_128",
  float8e4m3: "heed_cuda_decode_bf16_128_codes",
  int8: "heed_cuda_decode_bf16_128_codes",
  int4: "heed_cuda_decode_bf16_128_int4",
  "bfloat16 latent": "heed_cuda_latent_bf16_64",
};
const kindOf = ({ storage, headDim, valueDim }: DecodeShape): string =>
  `${storage}${valueDim < headDim ? " latent" : ""}`;
const decodes = TINY_SHAPES.filter((shape) => shape.kind === "decode");

/** Names of the kernels that an engine of its own asks for while `run` uses it, in order. */
function kernelsOf(run: (engine: ReturnType<typeof createCudaEngine>) => void): string[] {
  const { symbols } = openNative("emulated");
  const { kernel } = symbols;
  const names: string[] = [];
  symbols.kernel = (context, name, info) => {
    names.push(new TextDecoder().decode(name as Uint8Array).replace("\0", ""));
    return kernel(context, name, info);
  };
  const engine = createCudaEngine("own", "emulated", 0);
  try {
    run(engine);
  } finally {
    symbols.kernel = kernel;
    engine.close();
  }
  return names;
}
test("each kind of pages is timed, and tried on the emulated device", () => {
  const kinds = Object.keys(KERNELS).toSorted();
  for (const shapes of [SHAPES, TINY_SHAPES]) {
    const timed = shapes.filter((shape) => shape.kind === "decode").map(kindOf);
    expect([...new Set(timed)].toSorted()).toEqual(kinds);
  }
});
describe.skipIf(cudaRefusal("cuda-emulated") !== undefined)("a decode bench", () => {
  const named = decodes.map((shape) => [nameOf(shape), shape] as const);

  test.each(named)("has pages that are written whole: %s", async (_, shape) => {
    const { kPages, vPages, owned } = pool(cudaEmulated(), shape);
    for (const pages of [kPages, vPages]) {
      const [P, , pageSize] = (pages instanceof Tensor ? pages : pages.codes).shape;
      expect(P! * pageSize!).toBe(shape.batch * shape.length);
      const floats =
        pages instanceof Tensor ? [pages] : "zeros" in pages ? [pages.scales, pages.zeros] : [pages.scales];
      for (const t of floats) {
        using wide = cast(t, "float64");
        const numbers = [...(await wide.read())];
        expect(numbers.every(Number.isFinite)).toBe(true); // memory that nobody wrote is NaN there
        expect(new Set(numbers).size).toBeGreaterThan(30);
      }
    }
    for (const one of owned) one[Symbol.dispose]();
  });
  test.each(named)("runs the kernel of its pages: %s", (_, shape) => {
    const names = kernelsOf((engine) => {
      using subject = benchOf(shape).open(engine);
      subject.run();
    });
    expect(names.at(-1)).toBe(KERNELS[kindOf(shape)]!);
  });
});
