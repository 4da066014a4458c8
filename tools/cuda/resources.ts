/** What `ptxas -v` says about each kernel. */
import type { Resources } from "../../packages/engine-cuda/native/manifest.ts";

/** A kernel on one architecture. */
export interface KernelResources extends Resources {
  readonly kernel: string;
  readonly architecture: string;
}

const number = (text: string, pattern: RegExp): number => Number(pattern.exec(text)?.[1] ?? 0);

/** Reads a compiler's log. Throws when it has an entry without the line on registers: then the log's form has changed. */
export function readResources(log: string): KernelResources[] {
  const parts = log.split(/(?=Compiling entry function ')/).slice(1);
  return parts.map((part) => {
    const [, kernel, architecture] = /^Compiling entry function '(\w+)' for '(\w+)'/.exec(part) ?? [];
    const registers = /Used (\d+) registers/.exec(part)?.[1];
    if (kernel === undefined || architecture === undefined || registers === undefined)
      throw new Error(`no registers in what the assembler said: ${part.slice(0, 400)}`);
    return {
      kernel,
      architecture,
      registers: Number(registers),
      stack: number(part, /(\d+) bytes stack frame/),
      spillStores: number(part, /(\d+) bytes spill stores/),
      spillLoads: number(part, /(\d+) bytes spill loads/),
      shared: number(part, /(\d+) bytes smem/),
    };
  });
}

/** Names of the kernels in a log, sorted, each once. */
export const kernelNames = (resources: readonly KernelResources[]): string[] =>
  [...new Set(resources.map(({ kernel }) => kernel))].sort();

/** By kernel, then by architecture; both sorted. */
export function byKernel(all: readonly KernelResources[]): Record<string, Record<string, Resources>> {
  const table: Record<string, Record<string, Resources>> = {};
  const sorted = all.toSorted((a, b) => (a.kernel + a.architecture < b.kernel + b.architecture ? -1 : 1));
  for (const { kernel, architecture, ...resources } of sorted)
    (table[kernel] ??= {})[architecture] = resources;
  return table;
}
