/** Float64 oracles, comparison, gradient checks, generators and readers of vectors for the tests of Heed. */
export * from "./arbitraries/attention.ts";
export * from "./arbitraries/pages.ts";
export * from "./arbitraries/views.ts";
export * from "./compare.ts";
export * from "./dtype.ts";
export * from "./errors.ts";
export * from "./gradcheck.ts";
export * from "./oracle/attention-problem.ts";
export * from "./oracle/attention.ts";
export * from "./oracle/mask.ts";
export * from "./oracle/paged.ts";
export * from "./oracle/rms-norm.ts";
export * from "./oracle/rope.ts";
export * from "./poison.ts";
export * from "./rng.ts";
export * from "./tolerance.ts";
export * from "./vectors.ts";
