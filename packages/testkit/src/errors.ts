/** What went wrong: a bad argument, a malformed file, values that differ, or a gradient that does. */
export type TestkitErrorCode = "argument" | "format" | "mismatch" | "gradient";

/** Every error this package throws, with the values that were checked. */
export class TestkitError extends Error {
  override readonly name: string = "TestkitError";
  /** The kind of failure. */
  readonly code: TestkitErrorCode;
  /** The offending values, by name. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: TestkitErrorCode, message: string, details: Readonly<Record<string, unknown>> = {}) {
    super(message);
    this.code = code;
    this.details = details;
  }
}

/** Throws a {@link TestkitError} with code "argument" unless `array` has `length` elements. */
export function requireLength(where: string, name: string, array: ArrayLike<unknown>, length: number): void {
  if (array.length === length) return;
  throw new TestkitError("argument", `[${where}] ${name} must have ${length} elements; got ${array.length}`, {
    name,
    expected: length,
    actual: array.length,
  });
}

/** Throws a {@link TestkitError} with code "argument" and the given details unless `condition` holds. */
export function requireArgument(
  condition: boolean,
  message: string,
  details: Readonly<Record<string, unknown>> = {},
): asserts condition {
  if (!condition) throw new TestkitError("argument", message, details);
}
