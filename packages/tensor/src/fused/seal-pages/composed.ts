import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { copyInto } from "../../ops/concat.ts";
import { gather } from "../../ops/gather.ts";
import { withRows } from "../../ops/put-rows.ts";
import { encodeGroups } from "../quantised/groups.ts";
import type { PageRole, QuantisedGroups } from "../quantised/pages.ts";
import type { SealPagesPlan } from "./plan.ts";

/** Encodes the named residual pages together and copies each to its page. */
export function sealPagesComposed({ engine, kPages, vPages, from, to }: SealPagesPlan): void {
  const seal = (pages: QuantisedGroups, role: PageRole): void => {
    const encoded = encodeGroups(gather(pages.residual, from), role);
    for (const name of ["codes", "scales", "zeros"] as const) put(encoded[name], to, pages[name]);
  };
  // On a device the host does not see where the pages go: all are written anew.
  const put = (encoded: Tensor, targets: Tensor<"int32">, pages: Tensor): void =>
    engine.device === "cpu"
      ? copyEach(encoded, targets.contiguous().data.slice(), pages)
      : copyInto(withRows(pages, encoded, targets), pages);
  scope(() => {
    seal(kPages, "keys");
    seal(vPages, "values");
  });
}
function copyEach(encoded: Tensor, targets: ArrayLike<number>, pages: Tensor): void {
  for (let i = 0; i < targets.length; i++) {
    const target: Tensor = pages.select(0, targets[i]!);
    copyInto(encoded.select(0, i), target);
  }
}
