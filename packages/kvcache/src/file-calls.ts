import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";

/** The calls that page files make into the system; tests put others in their place. */
export interface FileCalls {
  readonly open: (path: string, flags: string) => Promise<OpenFile>;
  readonly rename: (from: string, to: string) => Promise<void>;
  readonly rm: (path: string, options: { force: boolean }) => Promise<void>;
  readonly readdir: (path: string) => Promise<string[]>;
  readonly stat: (path: string) => Promise<FileStatus>;
  readonly mkdir: (path: string, options: { recursive: boolean }) => Promise<unknown>;
}
/** What is asked of an open file. */
export interface OpenFile extends Pick<FileHandle, "sync" | "close"> {
  write(bytes: Uint8Array, at: number, length: number, position: number): Promise<{ bytesWritten: number }>;
  read(bytes: Uint8Array, at: number, length: number, position: number): Promise<{ bytesRead: number }>;
}
/** What is asked of a path. */
export interface FileStatus {
  readonly size: number;
  readonly mtimeMs: number;
  isFile(): boolean;
}
/** The system's own. */
export const systemCalls: FileCalls = { open, rename, rm, readdir, stat, mkdir };
