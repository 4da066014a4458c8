/** Gradient checks that layers share: gradients and values go by name, the input's under "input". */
import { type FloatDType, type Tensor, toFloat64 } from "@heed/tensor";
import { checkDirectionalGradient, checkGradient } from "@heed/testkit";
import type { LayerGradients } from "../../src/index.ts";

/** Values or gradients by name, in float64. */
export type Named = ReadonlyMap<string, Float64Array>;
/** A scalar of all that a layer takes, by name. */
export type Objective = (values: Named) => number;
/** What layers' gradients may hold besides those of x and the parameters. */
interface Others {
  readonly past?: Readonly<Record<string, Tensor>> | object;
  readonly context?: Tensor;
  readonly attnMask?: Tensor;
}

/** All gradients in float64: "input", parameters, "past.<name>", "context", "attnMask". */
export function flatGradients(g: LayerGradients<FloatDType> & Others): Map<string, Float64Array> {
  const past = Object.entries(g.past ?? {}) as [string, Tensor][];
  const all: (readonly [string, Tensor | undefined])[] = [
    ["input", g.input],
    ...g.parameters,
    ...past.map(([name, t]) => [`past.${name}`, t] as const),
    ["context", g.context],
    ["attnMask", g.attnMask],
  ];
  return new Map(all.flatMap(([name, t]) => (t === undefined ? [] : [[name, toFloat64(t)] as const])));
}
/** Values by the names of their gradients; what is absent is left out. */
export function namedValues(values: {
  readonly x: Float64Array;
  readonly parameters: Named;
  readonly past?: Readonly<Record<string, Float64Array>> | undefined;
  readonly context?: Float64Array | undefined;
  readonly mask?: Float64Array | undefined;
}): Map<string, Float64Array> {
  const { x, parameters, past, context, mask } = values;
  return new Map([
    ["input", x] as const,
    ...parameters,
    ...Object.entries(past ?? {}).map(([name, list]) => [`past.${name}`, list] as const),
    ...(context ? [["context", context] as const] : []),
    ...(mask ? [["attnMask", mask] as const] : []),
  ]);
}
/** {@link namedValues} undone, for values of the same names. */
export function valuesFrom<V extends Parameters<typeof namedValues>[0]>(named: Named, like: V): V {
  const part = (name: string): Float64Array => named.get(name)!;
  const { parameters, past, context, mask } = like;
  return {
    ...like,
    x: part("input"),
    parameters: new Map([...parameters.keys()].map((name) => [name, part(name)])),
    ...(past && {
      past: Object.fromEntries(Object.keys(past).map((name) => [name, part(`past.${name}`)])),
    }),
    ...(context && { context: part("context") }),
    ...(mask && { mask: part("attnMask") }),
  };
}
/**
 * Each gradient against central differences of the objective, in every coordinate (at most 24, at random) or along one random
 * direction. The small step costs 2 of 10 digits.
 */
export function checkGradients(
  objective: Objective,
  values: Named,
  gradients: Named,
  along: "coordinates" | "direction",
  { h = 2 ** -12, tolerance = 1e-7 }: { readonly h?: number; readonly tolerance?: number } = {},
): void {
  for (const [name, gradient] of gradients) {
    const f = (moved: Float64Array): number => objective(new Map(values).set(name, moved));
    const options = { name, h, rel: tolerance, abs: tolerance };
    if (along === "direction") checkDirectionalGradient(f, values.get(name)!, gradient, options);
    else checkGradient(f, values.get(name)!, gradient, { ...options, samples: 24 });
  }
}
