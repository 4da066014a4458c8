import { copyInto, empty, gather, pagedAttention, randn, sum, tensor } from "@heed/tensor";
import type { Tensor } from "@heed/tensor";
import type { CudaEngine } from "@heed/engine-cuda";
import type { CheckContext, Part, Verdict } from "./parts.ts";

/** Rows of 4096 bfloat16, 8 KiB each: so many pass 4 GiB by 64 rows. */
const ROWS = 2 ** 19 + 64;
const WIDTH = 4096;
/** The pool as pages: 2 key heads, 32 tokens, 64 numbers, 8 KiB a page. */
const PAGE = [2, 32, 64] as const;
const NEEDED = 2 * ROWS * WIDTH * 2 + 2 ** 30;

/** Whether `read` values are those that were written, to the bit. */
async function same(what: string, got: Tensor, wanted: Tensor): Promise<void> {
  const [a, b] = [await got.read(), await wanted.read()];
  const at = Array.prototype.findIndex.call(a, (x, i) => x !== b[i]);
  if (at >= 0 || a.length !== b.length) throw new Error(`${what}: element ${at} is ${a[at]}, not ${b[at]}`);
}
async function check(engine: CudaEngine, rows: number): Promise<void> {
  using small = empty([64, WIDTH], { engine, dtype: "bfloat16" });
  {
    using drawn = randn([64, WIDTH], { seed: 1, dtype: "bfloat16", engine });
    copyInto(drawn, small);
  }
  using large = empty([rows, WIDTH], { engine, dtype: "bfloat16" });
  for (let at = 0; at < rows; at += 64) {
    using to = large.slice(0, at, at + 64);
    copyInto(small, to);
  }
  using tail = large.slice(0, rows - 64, rows);
  await same("a copy past 4 GiB", tail, small);
  using indices = tensor(
    Int32Array.from({ length: 64 }, (_, i) => rows - 64 + i),
    undefined,
    { dtype: "int32", engine },
  );
  using gathered = gather(large, indices);
  await same("gather past 4 GiB", gathered, small);
  using sums = sum(large, { axes: [1] });
  using first = sums.slice(0, 0, 64);
  using last = sums.slice(0, rows - 64, rows);
  await same("row sums past 4 GiB", last, first);
  await attend(engine, large, rows);
}
/** A sequence in the last pages of a pool sees what one in the first sees: all blocks of 64 pages are alike. */
async function attend(engine: CudaEngine, large: Tensor<"bfloat16">, rows: number): Promise<void> {
  const int32 = (values: number[]) => tensor(values, undefined, { dtype: "int32", engine });
  using pages = large.reshape([rows, ...PAGE]);
  using q = randn([1, 4, PAGE[2]], { seed: 2, dtype: "bfloat16", engine });
  const outputs = [0, rows - 64].map((start) => {
    const table = {
      queryIndptr: int32([0, 1]),
      indptr: int32([0, 64]),
      indices: int32(Array.from({ length: 64 }, (_, i) => start + i)),
      lengths: int32([64 * PAGE[1] - 5]),
      slots: int32([-1]),
      epoch: 1,
    };
    return pagedAttention(q, { kPages: pages, vPages: pages, table }, { fused: "require" });
  });
  await same("attention over pages past 4 GiB", outputs[1]!, outputs[0]!);
}
/** Copies, gather, reductions and attention over pages beyond 2^32 bytes; on the emulation, the same steps on a pool that is small. */
export const offsetsPart: Part = {
  name: "offsets past 4 GiB",
  async run({ engine, emulated }: CheckContext): Promise<Verdict> {
    if (emulated) {
      await check(engine, 128);
      return { status: "skipped", detail: "the device is emulated: the same steps ran on a pool of 1 MiB" };
    }
    engine.trim();
    const { deviceFree } = engine.memory();
    if (deviceFree < NEEDED)
      return { status: "skipped", detail: `needs ${NEEDED} bytes of device memory; ${deviceFree} are free` };
    await check(engine, ROWS);
    return { status: "passed", detail: "copy, gather, sums and attention over pages, to the bit" };
  },
};
