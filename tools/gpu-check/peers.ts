import { join } from "node:path";
import { nameOf, type Shape } from "./shapes.ts";

/** A line of peers.py: a time, or why there is none. */
interface PeerLine {
  readonly name?: string;
  readonly peer: string;
  readonly milliseconds?: number;
  readonly missing?: string;
}
/** Times by shape and peer; lines that tell of something missing go to `say`. Throws SyntaxError for what is not JSON lines. */
export function parsePeers(text: string, say: (line: string) => void): Map<string, Record<string, number>> {
  const times = new Map<string, Record<string, number>>();
  for (const line of text.split("\n").filter((l) => l.trim() !== "")) {
    const { name, peer, milliseconds, missing } = JSON.parse(line) as PeerLine;
    if (milliseconds === undefined || name === undefined) {
      say(`      ${peer}${name === undefined ? "" : `, ${name}`}: ${missing ?? "no time"}`);
      continue;
    }
    times.set(name, { ...times.get(name), [peer]: milliseconds });
  }
  return times;
}
/** Times PyTorch's and others' kernels on the same shapes by peers.py, where python3 and they are there; none otherwise, in words. */
export async function runPeers(
  shapes: readonly Shape[],
  say: (line: string) => void,
): Promise<Map<string, Record<string, number>>> {
  const python = Bun.which("python3");
  if (python === null) {
    say("      no python3: no peers are timed");
    return new Map();
  }
  say("      peers");
  const child = Bun.spawn([python, join(import.meta.dir, "peers.py")], {
    stdin: new Blob([JSON.stringify(shapes.map((shape) => ({ ...shape, name: nameOf(shape) })))]),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  if ((await child.exited) !== 0) {
    say(`      peers.py failed: ${stderr.trim().split("\n").at(-1)}`);
    return new Map();
  }
  return parsePeers(stdout, say);
}
