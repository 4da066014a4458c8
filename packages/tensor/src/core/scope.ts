import { ArgumentError } from "./errors.ts";

/** What a scope can free. */
interface Owned {
  [Symbol.dispose](): void;
}
let open: Set<Owned> | undefined;

/**
 * Registers a handle with the innermost scope, which disposes it unless it is returned. Called by the constructors of tensors and of
 * what owns tensors, such as layers.
 */
export function adopt(handle: Owned): void {
  open?.add(handle);
}
/**
 * Runs `fn` and disposes every tensor it created except those reachable from what it returns (through arrays and plain objects),
 * which pass to the enclosing scope. When `fn` throws, everything it created is disposed. `fn` must not be async: a scope ends
 * when `fn` returns, so use `using` there. Throws ArgumentError when `fn` returns a promise.
 */
export function scope<R>(fn: () => R): R {
  const outer = open;
  const mine = new Set<Owned>();
  open = mine;
  let keep = new Set<unknown>();
  try {
    const result = fn();
    if (result instanceof Promise) {
      result.catch(() => {}); // its failure is not this error's subject, and must not end the process
      throw new ArgumentError(
        "[scope] the function returned a promise; a scope ends when it returns, so dispose with `using` instead",
      );
    }
    keep = reachable(result);
    return result;
  } finally {
    open = outer;
    for (const handle of mine) {
      if (keep.has(handle)) outer?.add(handle);
      else handle[Symbol.dispose]();
    }
  }
}
/**
 * Runs `fn` outside every scope: the tensors it creates belong to its caller alone, who disposes them. For owners whose tensors must
 * outlive the call that made them, such as tables and parameters. `fn` must not be async.
 */
export function unscoped<R>(fn: () => R): R {
  const outer = open;
  open = undefined;
  try {
    return fn();
  } finally {
    open = outer;
  }
}
/** Every object reachable through arrays, maps, plain objects and own enumerable properties; other class instances are leaves. */
function reachable(root: unknown): Set<unknown> {
  const seen = new Set<unknown>();
  const queue: unknown[] = [root];
  while (queue.length > 0) {
    const value = queue.pop();
    if (typeof value !== "object" || value === null || seen.has(value)) continue;
    seen.add(value);
    if (ArrayBuffer.isView(value)) continue;
    if (value instanceof Map) queue.push(...value.values());
    else if (Array.isArray(value)) queue.push(...(value as unknown[]));
    else if (Object.getPrototypeOf(value) === Object.prototype) queue.push(...Object.values(value));
  }
  return seen;
}
