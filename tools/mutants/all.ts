import { fileMutants } from "./files.ts";
import { int4Mutants } from "./int4.ts";
import type { Mutant } from "./mutant.ts";
import { pageMutants } from "./pages.ts";
import { prefixMutants } from "./prefixes.ts";
import { sequenceMutants } from "./sequences.ts";

/** Every bug that `bun run mutants` tries. */
export const allMutants: readonly Mutant[] = [
  ...pageMutants,
  ...sequenceMutants,
  ...prefixMutants,
  ...fileMutants,
  ...int4Mutants,
];
