/** What a failed check saw: the offending values under the names that the message uses. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/**
 * Base of every error that Heed throws. `code` is stable across versions; `details` holds the offending values; the message is
 * built from them and says what to do.
 */
export class HeedError extends Error {
  readonly code: string;
  readonly details: ErrorDetails;
  constructor(code: string, message: string, details: ErrorDetails = {}, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.details = details;
    this.name = new.target.name;
  }
}
/** Ranks, lengths, axes or strides that do not fit together. Code `HEED_SHAPE`. */
export class ShapeError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_SHAPE", message, details);
  }
}
/** A dtype that an operation does not take, or operands of different dtypes. Code `HEED_DTYPE`. */
export class DTypeError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_DTYPE", message, details);
  }
}
/** An option or argument outside its domain. Code `HEED_ARGUMENT`. */
export class ArgumentError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_ARGUMENT", message, details);
  }
}
/** An engine that is missing, is not the one the operands live on, or failed in a call. Code `HEED_DEVICE`. */
export class DeviceError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_DEVICE", message, details);
  }
}
/** Memory, or pages of a cache, ran out; nothing was changed. Code `HEED_OUT_OF_MEMORY`. */
export class OutOfMemoryError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_OUT_OF_MEMORY", message, details);
  }
}
/** A handle was used after it was disposed, or its memory was detached. Code `HEED_DISPOSED`. */
export class DisposedError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_DISPOSED", message, details);
  }
}
/** Memory that should have been freed is still held; `details.leaks` lists it. Code `HEED_LEAK`. */
export class LeakError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_LEAK", message, details);
  }
}
/** An engine's native library could not be loaded, or does not match this package. Code `HEED_ENGINE_LOAD`. */
export class EngineLoadError extends HeedError {
  constructor(message: string, details?: ErrorDetails, options?: ErrorOptions) {
    super("HEED_ENGINE_LOAD", message, details, options);
  }
}
/** A file that is not what it claims to be. Code `HEED_FORMAT`. */
export class FormatError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_FORMAT", message, details);
  }
}
/**
 * A kernel was required (`fused: "require"`) and refused, with its reason; or a checkpoint's config asks for what no layer does, with
 * the field. Code `HEED_UNSUPPORTED`.
 */
export class UnsupportedError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_UNSUPPORTED", message, details);
  }
}
