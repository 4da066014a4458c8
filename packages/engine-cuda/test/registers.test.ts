/** What the assembler said of each kernel when it was built: no registers spilled, and no more of them than its occupancy allows. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Manifest, Resources } from "../native/manifest.ts";

const path = join(import.meta.dir, "../prebuilt/linux-x64/manifest.json");
const manifest = JSON.parse(readFileSync(path, "utf8")) as Manifest;

/** Registers that a thread may use, by kernel; the first pattern that matches counts. A multiprocessor has 65536. */
const CEILINGS: readonly (readonly [pattern: RegExp, registers: number, reason: string])[] = [
  [
    /^heed_cuda_attention_(f16|bf16)_\d+_warpgroup$/,
    168,
    "384 or 512 threads, one block; warps that copy give most of theirs to the others",
  ],
  [
    /^heed_cuda_attention_(f16|bf16)_\d+(_rich)?$/,
    255,
    "scores, output and the next tile of keys stay in registers: 128 threads, two blocks to a multiprocessor",
  ],
  [
    /^heed_cuda_attention_backward_(keys|rows)_(f16|bf16)_/,
    255,
    "sums of dk and dv, or dq, and two products of scores stay in registers: 128 threads, two blocks",
  ],
  [
    /^heed_cuda_(latent_(bf16|f16)_\d+|decode_.*(bf16|f16)(_256.*)?)$/,
    255,
    "256 values of 16 rows stay in registers: one or two blocks by shared memory",
  ],
  [
    /^heed_cuda_decode_.*_int4$/,
    255,
    "scores of 32 keys, scaled queries in three terms and up to 128 values of 16 rows in registers: 128 threads, two blocks",
  ],
  [
    /^heed_cuda_decode_/,
    168,
    "queries and up to 128 values of 16 rows in registers: 128 threads, three blocks",
  ],
  [
    /^heed_cuda_matmul_float32_128$/,
    180,
    "64 results to a thread, and the next tile: 256 threads, one block",
  ],
  [/^heed_cuda_matmul_/, 128, "tiles of the product in registers: 256 threads, two blocks"],
  [/^heed_cuda_attention_any_/, 128, "128 threads, four blocks"],
  [
    /^heed_cuda_(norm_rope_append|rms_norm_backward)_/,
    128,
    "a row and its gradient or its turned half in registers: two blocks of 256",
  ],
  [/./, 80, "bound by memory: 256 threads, three blocks, 24 warps to hide a load"],
];
/** Kernels that spill, by architecture, with the bytes they may store. */
const SPILLS: readonly (readonly [pattern: RegExp, architecture: string, bytes: number, reason: string])[] = [
  [/^heed_cuda_attention_any_f32$/, "sm_120", 4, "around the call of the dropout generator"],
  [/^heed_cuda_attention_any_f64$/, "sm_120", 20, "around the call of the dropout generator"],
  [/^heed_cuda_attention_any_/, "sm_80", 24, "around calls of 64-bit division and of the dropout generator"],
  [/^heed_cuda_attention_backward_statistics_f32$/, "sm_80", 4, "a word across the call of 64-bit division"],
  [/^heed_cuda_attention_backward_statistics_f32$/, "sm_100", 4, "a word across the call of 64-bit division"],
  [/^heed_cuda_attention_backward_statistics_f32$/, "sm_120", 12, "words across the call of 64-bit division"],
  [/^heed_cuda_attention_backward_mask_/, "sm_80", 24, "around the call of the dropout generator"],
  [/^heed_cuda_attention_backward_mask_/, "sm_90a", 28, "around the call of the dropout generator"],
  [/^heed_cuda_attention_backward_mask_/, "sm_100", 20, "around the call of the dropout generator"],
  [
    /^heed_cuda_decode_(f16|bf16)_128$/,
    "sm_80",
    20,
    "five words beside 168 registers, outside the walk over keys",
  ],
  [/^heed_cuda_decode_(f16|bf16)_256_(codes|int4)$/, "sm_80", 52, "thirteen words beside 255 registers"],
  [
    /^heed_cuda_attention_(f16|bf16)_(64|256)_warpgroup$/,
    "sm_90a",
    20,
    "five words, the ends of ranges of keys, beside 160 or 232 registers",
  ],
  [
    /^heed_cuda_attention_(f16|bf16)_128$/,
    "sm_80",
    8,
    "an address of two words beside 255 registers, read three times a tile",
  ],
  // The kernels below are tuned for 8.0 and 9.0, where none spills; what these words cost on 10.0 and 12.0 has not been measured.
  [/^heed_cuda_attention_(f16|bf16)_64_rich$/, "sm_100", 36, "nine words beside 128 registers"],
  [/^heed_cuda_attention_(f16|bf16)_128$/, "sm_120", 4, "a word beside 255 registers"],
  [/^heed_cuda_matmul_(float16|bfloat16)_128$/, "sm_120", 28, "seven words beside 128 registers"],
];

const rows = Object.entries(manifest.resources).flatMap(([kernel, all]) =>
  Object.entries(all).map(([architecture, resources]) => ({ kernel, architecture, resources })),
);
const spillAllowed = (kernel: string, architecture: string): number =>
  SPILLS.find(([pattern, on]) => on === architecture && pattern.test(kernel))?.[2] ?? 0;
const ceiling = (kernel: string): number => CEILINGS.find(([pattern]) => pattern.test(kernel))![1];
const words = (row: (typeof rows)[number], what: keyof Resources): string =>
  `${row.kernel} on ${row.architecture}: ${row.resources[what]}`;

describe("the kernels of the prebuilt library", () => {
  test("are all listed, on every architecture with machine code", () => {
    const architectures = manifest.architectures.filter((name) => name.startsWith("sm_")).sort();
    expect(Object.keys(manifest.resources).sort()).toEqual(manifest.libraries.cuda.kernels.toSorted());
    for (const [kernel, all] of Object.entries(manifest.resources))
      expect({ kernel, on: Object.keys(all).sort() }).toEqual({ kernel, on: architectures });
  });
  test("spill no registers, but for those listed with a reason", () => {
    const spilled = rows.filter(
      ({ kernel, architecture, resources }) => resources.spillStores > spillAllowed(kernel, architecture),
    );
    expect(spilled.map((row) => words(row, "spillStores"))).toEqual([]);
  });
  test("have no exception that is not needed", () => {
    const unused = SPILLS.filter(
      ([pattern, on]) =>
        !rows.some(
          ({ kernel, architecture, resources }) =>
            pattern.test(kernel) && architecture === on && resources.spillStores > 0,
        ),
    );
    expect(unused.map(([pattern, on]) => `${pattern} on ${on}`)).toEqual([]);
  });
  test("stay below their ceiling of registers", () => {
    const above = rows.filter(({ kernel, resources }) => resources.registers > ceiling(kernel));
    expect(above.map((row) => `${words(row, "registers")}, at most ${ceiling(row.kernel)}`)).toEqual([]);
  });
});
