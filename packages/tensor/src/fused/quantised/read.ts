import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { concat } from "../../ops/concat.ts";
import { arange } from "../../ops/create.ts";
import { add, binary, maximum, minimum, sub } from "../../ops/elementwise.ts";
import { gather } from "../../ops/gather.ts";
import { hostIntegers } from "../../ops/check.ts";
import { choose } from "../../ops/put-rows.ts";
import { decodeGroups } from "./groups.ts";
import { type PageRole, type Pages, pageShape, type QuantisedGroups } from "./pages.ts";
import { decodeRows } from "./rows.ts";

/**
 * The pages that `numbers` [n] names, as numbers [n, Hkv, pageSize, width]: of the pages' own dtype where they are floats, else of
 * `dtype`.
 */
export function readPages(
  pages: Pages,
  role: PageRole,
  numbers: Tensor<"int32">,
  dtype: "float32" | "float64",
): Tensor<FloatDType> {
  return scope(() => {
    if (pages instanceof Tensor) return gather(pages, numbers) as Tensor<FloatDType>;
    if (pages.format !== "int4")
      return decodeRows(gather(pages.codes, numbers), gather(pages.scales, numbers), pages.format, dtype);
    const read = numbers.engine.device === "cpu" ? readGroups : readGroupsOnDevice;
    return read(pages, role, numbers, dtype);
  });
}
/** Runs of sealed pages and runs of residual pages, in order. */
function readGroups(
  pages: QuantisedGroups,
  role: PageRole,
  numbers: Tensor<"int32">,
  dtype: "float32" | "float64",
): Tensor<FloatDType> {
  const { P, width } = pageShape("pagedAttention", pages, role)!;
  const at = Array.from(hostIntegers(numbers), Number);
  const parts: Tensor<FloatDType>[] = [];
  for (let i = 0, end = 0; i < at.length; i = end) {
    const sealed = at[i]! < P;
    for (end = i + 1; end < at.length && at[end]! < P === sealed;) end++;
    const run = numbers.slice(0, i, end);
    if (sealed) {
      const encoded = {
        codes: gather(pages.codes, run),
        scales: gather(pages.scales, run),
        zeros: gather(pages.zeros, run),
      };
      parts.push(decodeGroups(encoded, role, width, dtype));
    } else {
      for (let n = i; n < end; n++)
        parts.push(cast(pages.residual.slice(0, at[n]! - P, at[n]! - P + 1), dtype));
    }
  }
  return concat(parts);
}
/** Without looking at the numbers: every one is read as a sealed page and as a residual page, and the right one is picked. */
function readGroupsOnDevice(
  pages: QuantisedGroups,
  role: PageRole,
  numbers: Tensor<"int32">,
  dtype: "float32" | "float64",
): Tensor<FloatDType> {
  const { P, R, width } = pageShape("pagedAttention", pages, role)!;
  const sealed = (): Tensor<FloatDType> => {
    const at = minimum(numbers, P - 1);
    const pick = (t: Tensor): Tensor => gather(t, at);
    const encoded = { codes: pick(pages.codes), scales: pick(pages.scales), zeros: pick(pages.zeros) };
    return decodeGroups(encoded as Parameters<typeof decodeGroups>[0], role, width, dtype);
  };
  const residual = (): Tensor<FloatDType> => cast(gather(pages.residual, maximum(sub(numbers, P), 0)), dtype);
  if (R === 0) return sealed();
  if (P === 0) return residual();
  const n = numbers.size;
  const isSealed = binary("less", numbers, P) as Tensor<"bool">;
  const rows = arange(0, n, 1, { engine: numbers.engine });
  return gather(concat([sealed(), residual()]), choose(isSealed, rows, add(rows, n)));
}
