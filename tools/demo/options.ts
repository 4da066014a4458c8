import { engineNames } from "@heed/tensor";

/** Models that the demo can train. */
const SIZES = ["full", "small"] as const;

/** What the demo was asked to do. */
export interface DemoOptions {
  /** A text to learn from; undefined: the documentation and sources of this clone. */
  readonly text: string | undefined;
  readonly steps: number;
  readonly engine: string;
  readonly size: (typeof SIZES)[number];
  /** Folder for the pictures and the model. */
  readonly out: string;
  readonly seed: number;
}
/** How to call the demo. */
export function usage(): string {
  return `usage: bun run demo [-- OPTIONS]
  --text FILE    learn from this file instead of the README, docs and sources of this clone
  --steps N      training steps (default 450)
  --engine NAME  ${engineNames().join(", ")} (default cpu)
  --size NAME    full, or small: a tenth of the model, for the emulated engine (default full)
  --out DIR      folder for loss.svg, attention.svg, model.safetensors, config.json (default out/demo)
  --seed S       seed of the weights, batches and samples (default 1)`;
}

/** A wrong command line, or an input that cannot be used; `message` is all that the user needs. */
export class UsageError extends Error {}

function wholeNumber(name: string, text: string, least: number): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < least) {
    throw new UsageError(`${name} must be a whole number of at least ${least}; got "${text}"`);
  }
  return value;
}
/** Parses the arguments after `--`. Undefined when help is asked for. Throws UsageError. */
export function parseOptions(args: readonly string[]): DemoOptions | undefined {
  const given = new Map<string, string>();
  for (let i = 0; i < args.length; i++) {
    const name = args[i]!;
    if (name === "--") continue;
    if (name === "--help" || name === "-h") return undefined;
    if (!["--text", "--steps", "--engine", "--size", "--out", "--seed"].includes(name))
      throw new UsageError(`unknown option "${name}"`);
    const value = args[++i];
    if (value === undefined) throw new UsageError(`${name} needs a value`);
    given.set(name, value);
  }
  const engine = given.get("--engine") ?? "cpu";
  if (!engineNames().includes(engine))
    throw new UsageError(`no engine "${engine}"; there are ${engineNames().join(", ")}`);
  const size = SIZES.find((name) => name === (given.get("--size") ?? "full"));
  if (size === undefined)
    throw new UsageError(`no size "${given.get("--size")}"; there are ${SIZES.join(", ")}`);
  return {
    text: given.get("--text"),
    steps: wholeNumber("--steps", given.get("--steps") ?? "450", 1),
    engine,
    size,
    out: given.get("--out") ?? "out/demo",
    seed: wholeNumber("--seed", given.get("--seed") ?? "1", 0),
  };
}
