import { type ErrorDetails, HeedError } from "@heed/tensor";

/** An operation at the wrong moment: a step that is closed, a sequence that is in another step. Code `HEED_STATE`. */
export class StateError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_STATE", message, details);
  }
}
/** The cache's books disagree with one another: a bug, here or in code that reached inside. Code `HEED_INVARIANT`. */
export class InvariantError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_INVARIANT", message, details);
  }
}
/** What is wrong with a page file. */
export type PageFileReason = "io" | "truncated" | "checksum" | "version" | "layout" | "header";
/**
 * A file of pages that cannot be written, read or trusted; `details` has the reason, the file, and the page and the byte offset where they
 * are known. Code `HEED_PAGE_FILE`.
 */
export class PageFileError extends HeedError {
  readonly reason: PageFileReason;
  constructor(reason: PageFileReason, message: string, details: ErrorDetails, options?: ErrorOptions) {
    super("HEED_PAGE_FILE", message, { reason, ...details }, options);
    this.reason = reason;
  }
}
/** A failed system call as PageFileError; any other error as it is. */
export function asPageFileError(error: unknown, file: string, what: string): unknown {
  const code = (error as { code?: unknown } | undefined)?.code;
  if (error instanceof HeedError || !(error instanceof Error) || typeof code !== "string") return error;
  return new PageFileError(
    "io",
    `[kvcache] cannot ${what} ${file}: ${error.message}`,
    { file, code },
    { cause: error },
  );
}
