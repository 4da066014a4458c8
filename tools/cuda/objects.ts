/** Compiling with a cache: an object is kept under the hash of its source, of every file that includes, and of the command. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join, normalize, relative } from "node:path";
import { ROOT } from "../native/toolchain.ts";
import { BUILD } from "./toolchain.ts";

/** One file to compile. */
export interface Job {
  readonly source: string;
  /** The command without input and output. */
  readonly command: readonly string[];
  /** Folder within the build folder, and the object's extension. */
  readonly kind: string;
  readonly extension: string;
  /** Text that the object depends on besides its includes. */
  readonly also?: string;
}
/** An object and what the compiler said while it made it. */
export interface Compiled {
  readonly job: Job;
  readonly object: string;
  readonly log: string;
}

/** `source` and what it includes with quotes, transitively, in the order met. Names that are not beside it are left to the command. */
export function includes(source: string, seen: Set<string> = new Set()): string[] {
  if (seen.has(source) || !existsSync(source)) return [...seen];
  seen.add(source);
  for (const [, name] of readFileSync(source, "utf8").matchAll(/^\s*#\s*include\s+"([^"]+)"/gm))
    includes(normalize(join(dirname(source), name!)), seen);
  return [...seen];
}

function hashOf(job: Job): string {
  const hash = new Bun.CryptoHasher("sha256").update(`${job.command.join(" ")}\0${job.also ?? ""}\0`);
  const always = job.command.filter((_, i) => job.command[i - 1] === "-include");
  for (const path of [job.source, ...always].flatMap((source) => includes(source)))
    hash.update(`${relative(ROOT, path)}\0`).update(readFileSync(path));
  return hash.digest("hex").slice(0, 24);
}

/** Removes what was made of earlier versions of a source, unless a build that goes on beside this one may still link it. */
function prune(folder: string, stem: string): void {
  const hour = 3_600_000;
  for (const file of readdirSync(folder).filter((name) => name.startsWith(`${stem}-`))) {
    const path = join(folder, file);
    const made = statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Infinity;
    if (Date.now() - made > hour) rmSync(path, { force: true });
  }
}

async function compile(job: Job): Promise<Compiled> {
  const folder = join(BUILD, job.kind);
  mkdirSync(folder, { recursive: true });
  const stem = relative(ROOT, job.source).replaceAll("/", "-");
  const object = join(folder, `${stem}-${hashOf(job)}${job.extension}`);
  if (!existsSync(object)) {
    const fresh = join(folder, `fresh-${process.pid}-${basename(object)}`);
    const child = Bun.spawn([...job.command, "-o", fresh, job.source], { stdout: "pipe", stderr: "pipe" });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    if ((await child.exited) !== 0)
      throw new Error(`${relative(ROOT, job.source)} does not compile:\n${out}${err}`);
    prune(folder, stem);
    await Bun.write(`${object}.log`, out + err);
    renameSync(fresh, object);
  }
  return { job, object, log: readFileSync(`${object}.log`, "utf8") };
}

/** All jobs, as many at once as there are processors: the objects and, of those that failed, the compiler's words. */
export async function tryAll(
  jobs: readonly Job[],
): Promise<{ readonly compiled: readonly Compiled[]; readonly errors: readonly string[] }> {
  const results: (Compiled | undefined)[] = [];
  const errors: string[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < jobs.length) {
      const index = next++;
      try {
        results[index] = await compile(jobs[index]!);
      } catch (error) {
        errors.push(error instanceof Error ? error.message : String(error));
      }
    }
  };
  await Promise.all(Array.from({ length: navigator.hardwareConcurrency }, worker));
  return { compiled: results.filter((result) => result !== undefined), errors };
}

/** The same. Throws with every compiler's words when some fail. */
export async function compileAll(jobs: readonly Job[]): Promise<readonly Compiled[]> {
  const { compiled, errors } = await tryAll(jobs);
  if (errors.length > 0) throw new Error(errors.join("\n"));
  return compiled;
}
