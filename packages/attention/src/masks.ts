import { type Engine, fill, scope, Tensor, zeros } from "@heed/tensor";
import { wholeNumber } from "./check.ts";

const MAX_LENGTH = 2 ** 25 - 1; // S * S elements of 8 bytes stay below 2^53, as the sizes of tensors must

/**
 * The causal sliding-window mask (Child et al. 2019, arXiv:1904.10509): bool [1, 1, S, S] for `attnMask`,
 * true iff 0 <= i - j < window. `window` counts the token itself, as a Hugging Face `sliding_window` does.
 * Each row is the one before it moved by one, so the mask is a view of 2S - 1 bytes: for reading only;
 * `contiguous()` copies it. The options `isCausal` and `window: { left: window - 1 }` say the same and skip
 * what is not seen. Throws ArgumentError unless S is a whole number from 0 to 2^25 - 1 and `window` one of at
 * least 1, OutOfMemoryError.
 */
export function causalSlidingWindowMask(
  S: number,
  window: number,
  options: { readonly engine?: Engine | string | undefined } = {},
): Tensor<"bool"> {
  wholeNumber("causalSlidingWindowMask", "S", S, 0, MAX_LENGTH);
  wholeNumber("causalSlidingWindowMask", "window", window, 1);
  return scope(() => {
    const on = { dtype: "bool" as const, ...(options.engine !== undefined && { engine: options.engine }) };
    if (S === 0) return zeros([1, 1, 0, 0], on);
    const diagonals = zeros([2 * S - 1], on); // element m is the diagonal i - j = S - 1 - m
    fill(diagonals.slice(0, Math.max(0, S - window), S), 1);
    diagonals.storage.retain();
    return new Tensor(diagonals.engine, diagonals.storage, "bool", [1, 1, S, S], [0, 0, -1, 1], S - 1);
  });
}
