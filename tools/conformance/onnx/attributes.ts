import type { OnnxCase } from "@heed/testkit";

/** An attribute that must be a number if it is there. Throws a TypeError in words. */
export function numberAttribute({ name: one, attributes }: OnnxCase, name: string): number | undefined {
  const value = attributes[name];
  if (value === undefined || typeof value === "number") return value;
  throw new TypeError(`${one}: attribute ${name} must be a number; got ${JSON.stringify(value)}`);
}
