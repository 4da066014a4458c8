// Attention forward and backward over one head of 64 at the given length; prints as JSON the bytes of the tensors that a caller sees
// and how far the process's peak memory rose above them.
import { scratchBytes } from "@heed/engine-cpu";
import { attentionVjp, full, getEngine, memoryUsage, randn, resetPeakMemory } from "@heed/tensor";

/** Peak resident memory of this process in bytes. */
async function peakResident(): Promise<number> {
  const status = await Bun.file("/proc/self/status").text();
  return Number(/VmHWM:\s*(\d+) kB/.exec(status)![1]) * 1024;
}
const length = Number(process.argv[2]);
const shape = [1, length, 1, 64];
{
  // Kernels, pages of code and the allocator's arenas are in place before anything is counted.
  using small = randn([1, 256, 1, 64], { seed: 9 });
  using pass = attentionVjp(small, small, small, { isCausal: true });
  pass.backward(pass.output);
}
const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => full(shape, seed / 8, { engine: getEngine("cpu") }));
resetPeakMemory();
const before = await peakResident();
const held = memoryUsage().bytes;
const pass = attentionVjp(q!, k!, v!, { isCausal: true });
const gradients = pass.backward(dOut!);
const results = memoryUsage().bytes - held; // output, lse and three gradients
const above = (await peakResident()) - before - results;
console.log(
  JSON.stringify({
    length,
    above,
    scratch: scratchBytes(),
    finite: Number.isFinite(gradients.k.data[0] as number),
  }),
);
