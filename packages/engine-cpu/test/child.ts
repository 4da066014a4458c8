/** Runs what might end a process in one of its own. */
export interface Outcome {
  readonly exitCode: number | null;
  readonly signal: string;
  /** Standard output and errors. */
  readonly text: string;
}
/** `bun ...args` in this package's folder, with `env` on top of this process's. */
export function bun(args: readonly string[], env: Readonly<Record<string, string>> = {}): Outcome {
  const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync([process.execPath, ...args], {
    cwd: `${import.meta.dir}/..`,
    env: { ...process.env, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  return { exitCode, signal: String(signalCode ?? "none"), text: `${stdout.toString()}${stderr.toString()}` };
}
/** Throws, with all that the child said, unless it ended well and ran at least `atLeast` tests. */
export function expectTestsPass(file: string, env: Readonly<Record<string, string>>, atLeast: number): void {
  const { exitCode, signal, text } = bun(["test", file], env);
  const passed = Number(/^\s*(\d+) pass$/m.exec(text)?.[1] ?? 0);
  if (exitCode === 0 && passed >= atLeast) return;
  throw new Error(
    `${file} with ${JSON.stringify(env)}: exit code ${exitCode}, signal ${signal}, ${passed} passed\n${text}`,
  );
}
