import { existsSync } from "node:fs";
import { type CudaEngine, cuda, cudaEmulated } from "../src/index.ts";
import { prebuilt } from "../src/native.ts";

/** Why tests on the emulated device cannot run here; where its library comes with the package, one that does not load fails them. */
export const emulatedMissing: string | undefined = existsSync(prebuilt("emulated"))
  ? undefined
  : `no library for ${process.platform}-${process.arch} comes with this package`;

/**
 * The engine that suites run on: the emulated device, or with HEED_TEST_ENGINE=cuda this machine's, as `bun run gpu:check` does. Tests
 * alone read it; what asks for the emulation by name, for its checks or to lose its context, stays there.
 */
export const ENGINE: "cuda" | "cuda-emulated" =
  process.env["HEED_TEST_ENGINE"] === "cuda" ? "cuda" : "cuda-emulated";
/** The engine of that name, opened. */
export const testedEngine = (): CudaEngine => (ENGINE === "cuda" ? cuda() : cudaEmulated());
