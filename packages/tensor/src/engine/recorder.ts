import { DeviceError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { Engine } from "./engine.ts";
import type { FusedOps } from "./fused.ts";

/** How a fused operation was run: by the engine's kernel, or in its composed form. */
export type FusedForm = "kernel" | "composed";

/** What a recording takes in besides the engine's own calls; see `recordTape`. */
export interface Recorder {
  readonly engine: Engine;
  /** Runs a fused operation and records it. */
  fused<Plan>(name: keyof FusedOps, form: FusedForm, plan: Plan, run: (plan: Plan) => void): void;
  /** Records a check of values, to be repeated by every replay. */
  check(tensors: readonly Tensor[], check: (tensors: readonly Tensor[]) => void): void;
  /** Runs `fn` without recording what it calls. */
  unrecorded<R>(fn: () => R): R;
}
let active: Recorder | undefined;

/** The recording that is open, if any. */
export function recorder(): Recorder | undefined {
  return active;
}
/** Opens a recording, or with undefined ends it. For `recordTape`. */
export function setRecorder(next: Recorder | undefined): void {
  active = next;
}
/**
 * For plans: a check of values on the host that has passed and that a replay must repeat, since positions, slots and lengths change
 * between replays. `check` gets tensors over the same memory and throws as it did in the plan.
 */
export function recheck(tensors: readonly Tensor[], check: (tensors: readonly Tensor[]) => void): void {
  active?.check(tensors, check);
}
/**
 * Runs `fn` without recording its calls: for constants that a layer computes once and keeps, such as the tables of a rotation, which
 * replays read and need not make again.
 */
export function unrecorded<R>(fn: () => R): R {
  return active === undefined ? fn() : active.unrecorded(fn);
}
/** Throws DeviceError when a recording of another engine is open: the call would be missing from its tape. */
export function requireRecordable(what: string, engine: Engine): void {
  if (active === undefined || active.engine === engine) return;
  throw new DeviceError(
    `[${what}] runs on engine "${engine.name}" while a tape of "${active.engine.name}" is recorded; compute on one engine there, and move data before or after`,
    { engine: engine.name, recording: active.engine.name },
  );
}
