import { type DType, DTYPES } from "../core/dtype.ts";
import { ArgumentError, DisposedError } from "../core/errors.ts";
import { adopt, scope, unscoped } from "../core/scope.ts";
import type { Shape } from "../core/shape.ts";
import type { Storage } from "../core/storage.ts";
import { show, Tensor } from "../core/tensor.ts";
import { watchReads } from "../core/watch.ts";
import type { Captured, Engine } from "./engine.ts";
import type { FusedOps } from "./fused.ts";
import { type FusedForm, type Recorder, recorder, setRecorder } from "./recorder.ts";

/** A tensor of an instruction: its name in the call or plan, such as "x" or "rules.sinks". */
export interface TapeOperand {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
}
/** One call of a tape, as {@link Tape.instructions} lists it. */
export interface TapeInstruction {
  /** The elementwise function or reduction ("exp", "sum"), the engine's method ("matmul"), or the fused operation ("rope"). */
  readonly name: string;
  /**
   * "core": a method of the engine. "kernel": a fused kernel. "composed": a fused operation without a kernel whose composed form
   * looks at values on the host, so that a replay runs that form again, temporaries included.
   */
  readonly kind: "core" | FusedForm;
  readonly operands: readonly TapeOperand[];
}
/** What {@link recordTape} returns. */
export interface Recorded<R> {
  /** What the function returned; its tensors belong to the caller, and every replay writes them anew. */
  readonly outputs: R;
  readonly tape: Tape;
}

type CoreMethod = Exclude<
  keyof Engine,
  "name" | "device" | "description" | "fused" | "alloc" | "wrap" | "read" | "sync" | "capture"
>;
/** The arguments of the engine's methods that are recorded. */
const ARGUMENTS: Readonly<Record<CoreMethod, readonly string[]>> = {
  upload: ["values", "out"],
  copy: ["x", "out"],
  unary: ["op", "x", "out"],
  binary: ["op", "a", "b", "out"],
  reduce: ["op", "x", "out"],
  matmul: ["a", "b", "out", "alpha", "beta"],
  softmax: ["x", "out"],
  gather: ["x", "indices", "out"],
  scatterAdd: ["x", "indices", "out"],
};
/**
 * Fused operations whose composed form is the same engine calls whatever the values are: these calls are recorded. Any other composed
 * form runs again at every replay, which is right for all of them.
 */
const STRAIGHT: ReadonlySet<keyof FusedOps> = new Set([
  "linear",
  "rope",
  "rmsNorm",
  "rmsNormBackward",
  "attentionBackward",
  "normRopeAppend",
]);

/** One step of a replay; a check of values has no listing. */
interface Step {
  readonly listed: TapeInstruction | undefined;
  readonly run: () => void;
}
/**
 * Engine calls in the order in which they were made, with handles on all their tensors, so that the memory of temporaries stays as
 * long as the tape. Made by {@link recordTape}.
 */
export class Tape {
  readonly engine: Engine;
  readonly #steps: readonly Step[];
  readonly #held: readonly Tensor[];
  #captured: Captured | undefined;
  #disposed = false;

  /** For {@link recordTape}. Takes over the handles. */
  constructor(engine: Engine, steps: readonly Step[], held: readonly Tensor[]) {
    this.engine = engine;
    this.#steps = steps;
    this.#held = held;
    adopt(this);
  }
  /** The recorded calls in order. */
  get instructions(): readonly TapeInstruction[] {
    return this.#steps.flatMap(({ listed }) => listed ?? []);
  }
  /**
   * Whether replays do all calls as one: on an engine that captures calls (CUDA, as a graph), from the first replay on, when nothing of
   * the tape has to run on the host.
   */
  get isCaptured(): boolean {
    return this.#captured !== undefined;
  }
  /** Bytes of the memory that the tape keeps alive, inputs and parameters included. */
  get bytes(): number {
    const storages = new Set<Storage>(this.#held.map((t) => t.storage));
    let bytes = 0;
    for (const storage of storages) bytes += storage.byteLength;
    return this.#disposed ? 0 : bytes;
  }
  /**
   * Runs the recorded calls on the same memory, without planning or allocation ("composed" instructions excepted). Inputs are what
   * their memory holds now: set them with `copyInto`. Positions, slots, page tables and lengths are checked again; throws what their
   * check threw in the plan (ArgumentError), and then the outputs are not to be used until a replay succeeds. Throws ArgumentError
   * while a tape is recorded, DisposedError.
   */
  replay(): void {
    if (this.#disposed)
      throw new DisposedError("[tape] this tape was disposed; keep it alive until its last replay");
    if (recorder() !== undefined)
      throw new ArgumentError("[tape] a tape cannot be replayed while one is recorded; replay it afterwards");
    const run = (): void => this.#steps.forEach((step) => step.run());
    const onHost = ({ listed }: Step): boolean => listed === undefined || listed.kind === "composed";
    if (this.engine.capture === undefined || this.#steps.length === 0 || this.#steps.some(onHost)) run();
    else (this.#captured ??= this.engine.capture(run)).launch();
  }
  /** Gives up the tape's hold on memory; outputs stay with whoever holds them. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#captured?.[Symbol.dispose]();
    for (const t of this.#held) t[Symbol.dispose]();
  }
}

/** Takes in calls while a recording is open. */
class TapeRecorder implements Recorder {
  readonly engine: Engine;
  readonly steps: Step[] = [];
  /** The tape's own handle for each one that a call was made with. */
  readonly handles: Map<Tensor, Tensor> = new Map();
  /** The method that cannot be recorded and was called. */
  refused: string | undefined;
  #paused = false;
  constructor(engine: Engine) {
    this.engine = engine;
  }
  core(name: CoreMethod, method: (...args: unknown[]) => void, args: readonly unknown[]): void {
    this.unrecorded(() => method.apply(this.engine, [...args]));
    if (this.#paused) return;
    // What was uploaded is a constant of the tape, whatever becomes of the caller's array.
    const kept = args.map((a) => (ArrayBuffer.isView(a) ? (a as Float32Array).slice() : this.#keep(a)));
    const operands = ARGUMENTS[name].flatMap((label, i) => describe(label, kept[i]));
    const listed = { name: typeof args[0] === "string" ? args[0] : name, kind: "core", operands } as const;
    this.steps.push({ listed, run: () => method.apply(this.engine, kept) });
  }
  fused<Plan>(name: keyof FusedOps, form: FusedForm, plan: Plan, run: (plan: Plan) => void): void {
    // On a device the host sees no values, so every composed form is straight there.
    const isStraight = this.engine.device !== "cpu" || STRAIGHT.has(name);
    if (this.#paused || (form === "composed" && isStraight)) {
      run(plan);
      return;
    }
    this.unrecorded(() => run(plan));
    const kept = this.#keep(plan) as Plan;
    this.steps.push({
      listed: { name, kind: form, operands: describe("", kept) },
      run: () => run(kept),
    });
  }
  check(tensors: readonly Tensor[], check: (tensors: readonly Tensor[]) => void): void {
    if (this.#paused) return;
    const kept = this.#keep(tensors) as readonly Tensor[];
    this.steps.push({ listed: undefined, run: () => check(kept) });
  }
  /** The function looks at values and may decide by them: a replay needs the same ones. */
  read(t: Tensor): void {
    if (this.#paused) return;
    const seen = bytesOf(t).slice();
    this.check([t], ([given]) => {
      const now = bytesOf(given!);
      if (now.every((byte, i) => byte === seen[i])) return;
      throw new ArgumentError(
        `[tape] the recorded function looked at the values of ${show(t)}, which are others now; record again`,
        { dtype: t.dtype, shape: t.shape },
      );
    });
  }
  unrecorded<R>(fn: () => R): R {
    const before = this.#paused;
    this.#paused = true;
    try {
      return fn();
    } finally {
      this.#paused = before;
    }
  }
  /** The value with the tape's own handles in place of its tensors, through arrays and objects. */
  #keep(value: unknown): unknown {
    if (typeof value !== "object" || value === null || value === this.engine) return value;
    if (ArrayBuffer.isView(value)) return value;
    if (Array.isArray(value)) return value.map((v) => this.#keep(v));
    if (!(value instanceof Tensor))
      return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, this.#keep(v)]));
    let own = this.handles.get(value);
    if (own === undefined) {
      own = unscoped(() => value.alias());
      this.handles.set(value, own);
    }
    return own;
  }
}
/** The memory of a contiguous tensor on the host. */
function bytesOf({ storage, offset, size, dtype }: Tensor): Uint8Array {
  const { bytes } = DTYPES[dtype];
  const part = storage.hostPart(offset * bytes, size * bytes)!;
  return new Uint8Array(part.buffer, offset * bytes - part.start, size * bytes);
}
/** The tensors of a call or plan under their paths in it. */
function describe(path: string, value: unknown): TapeOperand[] {
  if (value instanceof Tensor) return [{ name: path, dtype: value.dtype, shape: value.shape }];
  const isPlain =
    typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
  if (!isPlain) return [];
  return Object.entries(value).flatMap(([key, v]) =>
    key === "engine" ? [] : describe(path === "" ? key : `${path}.${key}`, v),
  );
}
/** Puts recording methods in the place of the engine's own; returns what undoes that. */
function intercept(engine: Engine, record: TapeRecorder): () => void {
  const target = engine as unknown as Record<string, (...args: unknown[]) => unknown>;
  const undo: (() => void)[] = [];
  const replace = (name: string, by: (...args: unknown[]) => unknown): void => {
    const own = Object.hasOwn(target, name);
    const before = target[name]!;
    target[name] = by;
    undo.push(() => {
      if (own) target[name] = before;
      else delete target[name];
    });
  };
  for (const name of Object.keys(ARGUMENTS) as CoreMethod[]) {
    const method = target[name]!;
    replace(name, (...args) => record.core(name, method, args));
  }
  for (const name of ["read", "sync"]) {
    const method = target[name]!;
    replace(name, (...args) => {
      record.refused ??= name;
      return method.apply(engine, args);
    });
  }
  return () => undo.splice(0).forEach((f) => f());
}
/**
 * Runs `fn` and records every call that it makes of `engine`. `tape.replay()` then computes the outputs again, in the same memory and
 * bit for bit, from what the inputs hold by then: tensors that existed before are inputs, tensors made from numbers inside (`tensor`,
 * `arange`, options) are constants. `fn` runs in a scope and must be synchronous. When `fn` looks at elements on the host, through
 * `data`, it may decide by them, so a replay with others throws ArgumentError. Throws ArgumentError when a recording is open, when `fn`
 * returns a promise or calls `read` or `sync`, or when the engine object is frozen; DeviceError when it computes on another engine;
 * what `fn` throws.
 */
export function recordTape<R>(engine: Engine, fn: () => R): Recorded<R> {
  if (recorder() !== undefined)
    throw new ArgumentError("[recordTape] a recording is open already; record one tape after the other");
  if (!Object.isExtensible(engine))
    throw new ArgumentError(
      `[recordTape] the object of engine "${engine.name}" is frozen; recording replaces its methods`,
      {
        engine: engine.name,
      },
    );
  const record = new TapeRecorder(engine);
  const restore = intercept(engine, record);
  setRecorder(record);
  watchReads((t) => record.read(t));
  const close = (): void => {
    setRecorder(undefined);
    watchReads(undefined);
    restore();
  };
  const held = (): Tensor[] => [...record.handles.values()];
  try {
    return scope(() => {
      const outputs = scope(fn);
      close();
      if (record.refused !== undefined)
        throw new ArgumentError(
          `[recordTape] the function calls ${record.refused}(), which a replay cannot repeat; read tensors after the recording`,
          { called: record.refused },
        );
      const tape = new Tape(engine, record.steps, held());
      record.handles.clear(); // the steps keep the recorder, which need not keep what it recorded from
      return { outputs, tape };
    });
  } catch (error) {
    for (const t of held()) t[Symbol.dispose]();
    throw error;
  } finally {
    close();
  }
}
