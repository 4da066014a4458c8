import type { FusedOp, SealPagesPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { SEAL_PAGES } from "../structs.ts";
import { writePages } from "./pages.ts";

/** Encoding full pages on heed_seal_pages_run; it takes every plan. */
export function sealPages(native: Native): FusedOp<SealPagesPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = SEAL_PAGES;
  return {
    refusal: () => undefined,
    run: ({ kPages, vPages, from, to }) => {
      block.begin(bytes, 0);
      writePages(block, fields, kPages, vPages);
      block.tensor(fields.from, from); // [n]
      block.tensor(fields.to, to); // [n]
      native.run(symbols.heed_seal_pages_run);
    },
  };
}
