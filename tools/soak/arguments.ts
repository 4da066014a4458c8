import { parseArgs } from "node:util";

/** What `--help` prints. */
export const usage: string = `bun run soak [--commands N] [--seed S] [--setup I] [--from N] [--engine NAME]

Does N random commands to key/value caches, failures and damage included, and after every one compares all that can be
seen with a model. The same seed gives the same commands.

  --commands N   how many (default: 1000000)
  --seed S       a whole number (default: the time)
  --setup I      which cache; by default they take turns
  --from N       passes over the turns that end before command N
  --turn N       commands on one cache before the next takes over (default: 50000)
  --engine NAME  cpu or portable (default: cpu)

Ends with 1 at the first thing that is not as it should be, and says at which command.`;

/** What the command line asked for. */
export interface SoakArguments {
  readonly commands: number;
  readonly seed: number;
  readonly setup: number | undefined;
  readonly from: number;
  readonly turn: number;
  readonly engine: string;
  readonly help: boolean;
}
function whole(text: string, name: string, least: number): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n >= least && text.trim() !== "") return n;
  throw new TypeError(`--${name} must be a whole number from ${least} on; got ${text}`);
}
/** Reads the command line. Throws a TypeError in words for an unknown option or a value that is none. */
export function parseArguments(args: readonly string[]): SoakArguments {
  const { values } = parseArgs({
    args: [...args],
    options: {
      commands: { type: "string", default: "1000000" },
      seed: { type: "string", default: String(Date.now() % 2 ** 31) },
      setup: { type: "string" },
      from: { type: "string", default: "0" },
      turn: { type: "string", default: "50000" },
      engine: { type: "string", default: "cpu" },
      help: { type: "boolean", default: false },
    },
  });
  return {
    commands: whole(values.commands, "commands", 1),
    seed: whole(values.seed, "seed", 0),
    setup: values.setup === undefined ? undefined : whole(values.setup, "setup", 0),
    from: whole(values.from, "from", 0),
    turn: whole(values.turn, "turn", 1),
    engine: values.engine,
    help: values.help,
  };
}
