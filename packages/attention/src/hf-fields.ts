import { FormatError, UnsupportedError } from "@heed/tensor";

/** The JSON objects of a Hugging Face config, as parsed. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Whether a parsed JSON value is an object, a list not being one. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
/** A value for an error's text, cut where it is long. */
function brief(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}
/** A config's object, read field by field. A field that is null counts as absent. Errors name the field. */
export class Fields {
  readonly #json: JsonObject;
  readonly #path: string;

  /** `path` is where the object stands, "config" for the whole. */
  constructor(json: JsonObject, path: string) {
    this.#json = json;
    this.#path = path;
  }
  /** Names of the fields that are present. */
  get names(): string[] {
    return Object.keys(this.#json).filter((name) => this.has(name));
  }
  /** Whether the field is there and not null. */
  has(name: string): boolean {
    return this.raw(name) !== undefined;
  }
  /** The value as it stands; undefined when absent or null. */
  raw(name: string): unknown {
    return Object.hasOwn(this.#json, name) ? (this.#json[name] ?? undefined) : undefined;
  }
  /** A finite number; undefined when absent. Throws FormatError. */
  number(name: string): number | undefined {
    const value = this.raw(name);
    if (value === undefined || (typeof value === "number" && Number.isFinite(value))) return value;
    return this.malformed(name, "must be a finite number");
  }
  /** A number that must be there. Throws FormatError. */
  required(name: string): number {
    return this.number(name) ?? this.malformed(name, "must be given");
  }
  /** A whole number of at least 1; undefined when absent. Throws FormatError. */
  count(name: string): number | undefined {
    const value = this.number(name);
    if (value === undefined || (Number.isSafeInteger(value) && value >= 1)) return value;
    return this.malformed(name, "must be a whole number of at least 1");
  }
  /** A whole number of at least 1 that must be there. Throws FormatError. */
  requiredCount(name: string): number {
    return this.count(name) ?? this.malformed(name, "must be given");
  }
  /** False when absent. Throws FormatError. */
  flag(name: string): boolean {
    const value = this.raw(name) ?? false;
    return typeof value === "boolean" ? value : this.malformed(name, "must be true or false");
  }
  /** A string; undefined when absent. Throws FormatError. */
  text(name: string): string | undefined {
    const value = this.raw(name);
    if (value === undefined || typeof value === "string") return value;
    return this.malformed(name, "must be a string");
  }
  /** A list of finite numbers that must be there. Throws FormatError. */
  numbers(name: string): number[] {
    const value = this.raw(name);
    const fits = Array.isArray(value) && value.every((x) => typeof x === "number" && Number.isFinite(x));
    return fits ? (value as number[]) : this.malformed(name, "must be a list of numbers");
  }
  /** A list; undefined when absent. Throws FormatError. */
  list(name: string): readonly unknown[] | undefined {
    const value = this.raw(name);
    if (value === undefined || Array.isArray(value)) return value;
    return this.malformed(name, "must be a list");
  }
  /** The object of a field; undefined when absent. `defaults` stand under its own fields. Throws FormatError. */
  object(name: string, defaults: JsonObject = {}): Fields | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (!isJsonObject(value)) return this.malformed(name, "must be an object");
    return new Fields({ ...defaults, ...value }, `${this.#path}.${name}`);
  }
  /** Throws FormatError: the field is not what a config may say. */
  malformed(name: string, why: string): never {
    const field = `${this.#path}.${name}`;
    const value = this.raw(name);
    throw new FormatError(`[huggingface] ${field} ${why}; got ${brief(value ?? null)}`, { field, value });
  }
  /** Throws UnsupportedError: the field asks for what no layer here does. */
  unsupported(name: string, why: string): never {
    const field = `${this.#path}.${name}`;
    const value = this.raw(name);
    throw new UnsupportedError(`[huggingface] ${field} ${brief(value)} is not supported: ${why}`, {
      field,
      value,
    });
  }
}
