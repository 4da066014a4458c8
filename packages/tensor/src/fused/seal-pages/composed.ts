import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { copyInto } from "../../ops/concat.ts";
import { gather } from "../../ops/gather.ts";
import { encodeGroups } from "../quantised/groups.ts";
import type { PageRole, QuantisedGroups } from "../quantised/pages.ts";
import type { SealPagesPlan } from "./plan.ts";

/** Encodes the named residual pages together and copies each to its page. */
export function sealPagesComposed({ kPages, vPages, from, to }: SealPagesPlan): void {
  const seal = (pages: QuantisedGroups, role: PageRole, targets: ArrayLike<number>): void => {
    const encoded = encodeGroups(gather(pages.residual, from), role);
    for (const name of ["codes", "scales", "zeros"] as const)
      for (let i = 0; i < targets.length; i++) {
        const target: Tensor = pages[name].select(0, targets[i]!);
        copyInto(encoded[name].select(0, i), target);
      }
  };
  scope(() => {
    const targets = to.contiguous().data.slice();
    seal(kPages, "keys", targets);
    seal(vPages, "values", targets);
  });
}
