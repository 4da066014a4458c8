import { join } from "node:path";

/** The repository's root, where commands run. */
export const ROOT: string = join(import.meta.dir, "../..");

/** A command that has ended, with the last lines of what it printed. */
export interface Ended {
  readonly exitCode: number;
  readonly stdout: string;
  /** The last 4000 characters of both streams. */
  readonly tail: string;
}
/** Runs a command at the root; `say` hears each line of its standard error. */
export async function run(
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
  say: (line: string) => void = () => {},
): Promise<Ended> {
  const child = Bun.spawn([...command], {
    cwd: ROOT,
    env: { ...process.env, NO_COLOR: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), lines(child.stderr, say)]);
  return { exitCode: await child.exited, stdout, tail: `${stdout}\n${stderr}`.trim().slice(-4000) };
}
async function lines(stream: ReadableStream<Uint8Array>, say: (line: string) => void): Promise<string> {
  const decoder = new TextDecoder();
  let [all, open] = ["", ""];
  for await (const chunk of stream) {
    const text = decoder.decode(chunk, { stream: true });
    all += text;
    const whole = (open + text).split("\n");
    open = whole.pop()!;
    whole.forEach(say);
  }
  return all;
}
