import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type FileCalls, type OpenFile, systemCalls } from "../src/file-calls.ts";

/** A folder of its own, removed when disposed. */
export function temporaryFolder(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "heed-kvcache-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}
/** How the system fails: once, at the n-th call; or from the n-th call on, as when the process dies there. */
export interface Faults {
  readonly calls: FileCalls;
  /** Names of the calls made, in order. */
  readonly log: string[];
  /** Fails at the n-th call from now, counting from 1. */
  arm(n: number, kind?: "once" | "crash"): void;
  /** Whether a call has failed. */
  fired(): boolean;
}
/** The system's calls, which fail when armed. Writes store at most `most` bytes at a time; half of them are stored by one that fails. */
export function faultyCalls(most: number = Infinity): Faults {
  const log: string[] = [];
  let left = Infinity;
  let kind: "once" | "crash" = "once";
  let fired = false;
  const fails = (name: string): boolean => {
    log.push(name);
    left--;
    const now = kind === "crash" ? left <= 0 : left === 0;
    fired ||= now;
    return now;
  };
  const error = (name: string): Error =>
    Object.assign(new Error(`ENOSPC: no space left on device, ${name}`), { code: "ENOSPC", syscall: name });
  const guard =
    <A extends readonly unknown[], R>(name: string, call: (...args: A) => Promise<R>) =>
    async (...args: A): Promise<R> => {
      if (fails(name)) throw error(name);
      return call(...args);
    };
  const wrap = (file: OpenFile): OpenFile => ({
    write: async (bytes, at, length, position) => {
      const fail = fails("write");
      const size = Math.min(most, fail ? Math.floor(length / 2) : length);
      const done = await file.write(bytes, at, size, position);
      if (fail) throw error("write");
      return done;
    },
    read: guard("read", (bytes: Uint8Array, at: number, length: number, position: number) =>
      file.read(bytes, at, Math.min(most, length), position),
    ),
    sync: guard("sync", () => file.sync()),
    close: async () => {
      const fail = fails("close");
      await file.close(); // a real close frees the descriptor even when it fails
      if (fail) throw error("close");
    },
  });
  const calls: FileCalls = {
    open: async (path, flags) => {
      if (fails("open")) throw error("open");
      return wrap(await systemCalls.open(path, flags));
    },
    rename: guard("rename", systemCalls.rename),
    rm: guard("rm", systemCalls.rm),
    readdir: guard("readdir", systemCalls.readdir),
    stat: guard("stat", systemCalls.stat),
    mkdir: guard("mkdir", systemCalls.mkdir),
  };
  const arm = (n: number, as: "once" | "crash" = "once"): void => {
    left = n;
    kind = as;
    fired = false;
  };
  return { calls, log, arm, fired: () => fired };
}
