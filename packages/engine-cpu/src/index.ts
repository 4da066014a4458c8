import { ArgumentError, type Engine, getEngine, registerEngine } from "@heed/tensor";
import { createNativeEngine } from "./engine.ts";
import { loadNative, missing, type Native } from "./native.ts";
import { createPortableEngine } from "./portable/engine.ts";

let loaded: Native | undefined;
function native(): Native {
  loaded ??= loadNative();
  return loaded;
}
/** Which floor the default engine stands on, and why: the native library where this platform has one, else TypeScript. */
export const floorReason: string =
  missing === undefined
    ? `native: a library for ${process.platform}-${process.arch} comes with this package`
    : `portable: ${missing}`;

// Registering loads nothing. The first engine registered is the default.
const register = {
  cpu: (): void => registerEngine("cpu", () => createNativeEngine(native())),
  portable: (): void => registerEngine("portable", () => createPortableEngine(missing)),
};
if (missing === undefined) register.cpu();
register.portable();
if (missing !== undefined) register.cpu();

/** The engine with native kernels. Throws EngineLoadError, with the reason, where its library cannot be loaded. */
export function cpu(): Engine {
  return getEngine("cpu");
}
/** The engine in TypeScript, which runs everywhere. */
export function portable(): Engine {
  return getEngine("portable");
}
/**
 * Sets how many threads work on one call of the native engine, the caller included: 1 to 256, or 0 for the physical cores that this
 * process may use, which is the default. Results do not depend on it. Throws ArgumentError, EngineLoadError.
 */
export function setThreads(count: number): void {
  if (!Number.isInteger(count) || count < 0 || count > 256) {
    throw new ArgumentError(`[setThreads] takes a whole number from 0 to 256; got ${count}`, { count });
  }
  const status = native().symbols.heed_set_threads(count);
  if (status !== 0) native().fail(status);
}
/** How many threads work on one call of the native engine. Throws EngineLoadError. */
export function threads(): number {
  return native().symbols.heed_threads();
}
/** The instruction set in use: an x86-64 level such as "v3". Throws EngineLoadError. */
export function isa(): string {
  return String(native().symbols.heed_isa());
}
/** The instruction sets that this processor can run, worst first. Throws EngineLoadError. */
export function availableIsas(): string[] {
  return String(native().symbols.heed_available_isas()).split(",");
}
/**
 * Switches to the kernels of one instruction set, for tests and measurements; undefined chooses the best. The environment variable
 * HEED_CPU_TARGET does the same at load. Throws ArgumentError or UnsupportedError when the processor lacks it, EngineLoadError.
 */
export function selectIsa(name: string | undefined): void {
  native().selectIsa(name);
}
/** Options of {@link measurePeak}. */
export interface PeakOptions {
  /** Default {@link threads}. */
  readonly threads?: number;
}
/** heed_peak_kind. */
const PEAK = { "fma-f32": 0, read: 1 } as const;
/**
 * Measures a limit of this machine at the instruction set in use: FLOP/s of float32 multiply-adds, or bytes/s of reading 256 MiB.
 * Takes some tens of milliseconds. Throws EngineLoadError, OutOfMemoryError.
 */
export function measurePeak(kind: keyof typeof PEAK, options: PeakOptions = {}): number {
  return native().measurePeak(PEAK[kind], options.threads ?? threads());
}
/** Bytes that the library keeps between calls: scratch of its kernels, and freed blocks for reuse (128 MiB at most). Throws EngineLoadError. */
export function scratchBytes(): number {
  return Number(native().symbols.heed_scratch_bytes());
}
/** Gives that memory back to the system; the next calls allocate again. Throws EngineLoadError. */
export function releaseScratch(): void {
  native().symbols.heed_scratch_release();
}
