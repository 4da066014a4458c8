/**
 * Rules for attributes that arrive as data, such as JSON: what is there, and of which type. Ranges are the
 * layers' own.
 */
import { ArgumentError } from "@heed/tensor";

/** Checks a value and returns it, or a copy of what it allows. `at` names it in errors. */
type Read = (what: string, at: string, value: unknown) => unknown;
/** What an attribute must be; `required` that it is there, `nullable` that it may be null. */
export interface Rule<R extends boolean = boolean, N extends boolean = boolean> {
  readonly required: R;
  readonly nullable: N;
  readonly read: Read;
}
/**
 * A rule for every field of T, required and nullable exactly where T's field is: a field whose rule is
 * missing or says otherwise does not compile.
 */
export type Rules<T> = {
  readonly [K in keyof T]-?: Rule<
    Record<never, never> extends Pick<T, K> ? false : true,
    null extends T[K] ? true : false
  >;
};
/** Rules by name, whatever they are for. */
export type AnyRules = Readonly<Record<string, Rule>>;

function say(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object" || value === null) return String(value);
  return Array.isArray(value) ? "a list" : "an object";
}
function wrong(what: string, at: string, kind: string, value: unknown): ArgumentError {
  return new ArgumentError(`[${what}] attribute "${at}" must be ${kind}; got ${say(value)}`, {
    attribute: at,
    value,
  });
}
function optional(read: Read): Rule<false, false> {
  return { required: false, nullable: false, read };
}
function ofKind(kind: string, accepts: (value: unknown) => boolean): Rule<false, false> {
  return optional((what, at, value) => {
    if (accepts(value)) return value;
    throw wrong(what, at, kind, value);
  });
}
/** Whether a value has fields by name. */
export function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
const isNumber = (value: unknown): boolean => typeof value === "number";

export const number: Rule<false, false> = ofKind("a number", isNumber);
export const boolean: Rule<false, false> = ofKind("true or false", (value) => typeof value === "boolean");
export const string: Rule<false, false> = ofKind("a string", (value) => typeof value === "string");
export const numbers: Rule<false, false> = ofKind(
  "a list of numbers",
  (value) => Array.isArray(value) && value.every(isNumber),
);
/** Any object; what it is handed to checks its fields. */
export const anything: Rule<false, false> = ofKind("an object", isObject);

/** One of these strings. */
export function oneOf(...values: readonly string[]): Rule<false, false> {
  const kind = values.map((value) => JSON.stringify(value)).join(" or ");
  return ofKind(kind, (value) => values.includes(value as string));
}
/** The same rule for an attribute that must be there. */
export function required(rule: Rule<false, false>): Rule<true, false> {
  return { ...rule, required: true };
}
/** The same rule for an attribute that may be null. */
export function orNull(rule: Rule<false, false>): Rule<false, true> {
  return { ...rule, nullable: true };
}
/** An object with these fields. */
export function object<T>(rules: Rules<T>): Rule<false, false> {
  return optional((what, at, value) => readAttributes(what, value, rules as AnyRules, at));
}
/** What `accepts` takes, as it is, or what the rule says. */
export function orElse(accepts: (value: unknown) => boolean, rule: Rule<false, false>): Rule<false, false> {
  return optional((what, at, value) => (accepts(value) ? value : rule.read(what, at, value)));
}
/**
 * A copy of the attributes, without those that are undefined. Throws ArgumentError that names the attribute:
 * missing, unknown or of another type.
 */
export function readAttributes(
  what: string,
  given: unknown,
  rules: AnyRules,
  within = "",
): Record<string, unknown> {
  if (!isObject(given)) throw wrong(what, within, "an object", given);
  const path = (name: string): string => (within === "" ? name : `${within}.${name}`);
  const read: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(rules, name)) {
      const known = Object.keys(rules).map(path).join(", ") || "none";
      throw new ArgumentError(`[${what}] there is no attribute "${path(name)}"; known: ${known}`, {
        attribute: path(name),
      });
    }
    const rule = rules[name]!;
    if (value === undefined) continue;
    read[name] = value === null && rule.nullable ? null : rule.read(what, path(name), value);
  }
  for (const [name, rule] of Object.entries(rules)) {
    if (!rule.required || Object.hasOwn(read, name)) continue;
    throw new ArgumentError(`[${what}] attribute "${path(name)}" is missing`, {
      attribute: path(name),
      given: Object.keys(given),
    });
  }
  return read;
}
