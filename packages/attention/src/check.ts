import { ArgumentError } from "@heed/tensor";

/** Throws ArgumentError unless option `name` of `what` is a whole number from `min` to `max`; returns it. */
export function wholeNumber(
  what: string,
  name: string,
  value: number,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): number {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return value;
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  throw new ArgumentError(`[${what}] ${name} must be a whole number ${range}; got ${value}`, {
    [name]: value,
  });
}
/** Throws ArgumentError unless option `name` of `what` is finite and above 0; returns it. */
export function positive(what: string, name: string, value: number): number {
  if (Number.isFinite(value) && value > 0) return value;
  throw new ArgumentError(`[${what}] ${name} must be a finite number above 0; got ${value}`, {
    [name]: value,
  });
}
/** Throws ArgumentError unless option `name` of `what` is finite and at least 0; returns it. */
export function notNegative(what: string, name: string, value: number): number {
  if (Number.isFinite(value) && value >= 0) return value;
  throw new ArgumentError(`[${what}] ${name} must be a finite number of at least 0; got ${value}`, {
    [name]: value,
  });
}
