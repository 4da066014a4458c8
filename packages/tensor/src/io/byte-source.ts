import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { FormatError } from "../core/errors.ts";

/** Where the open descriptors of a process have paths. A path of the file's own may lead to another file by now. */
const DESCRIPTORS = process.platform === "linux" ? "/proc/self/fd" : "/dev/fd";

/** Bytes that can be read from any place: of a file, or in memory. */
export interface ByteSource {
  /** How many there are. */
  readonly size: number;
  /** Fills `into` with the bytes from `at` on. Throws FormatError when they are not there any more, the system's own errors. */
  read(at: number, into: Uint8Array): void;
  /**
   * The bytes from `begin` to `end` (not empty) in a buffer of their own that costs no memory until it is written: a private mapping,
   * whose writes reach nobody else and which goes with its buffer. Undefined where the system refuses. Throws FormatError as `read`.
   * Absent for bytes that are not a file's.
   */
  map?(begin: number, end: number): ArrayBuffer | undefined;
  /** Lets go of the file; what was mapped stays. Calling it again does nothing. */
  close(): void;
}
/** Bytes that are in memory already. */
export function memorySource(bytes: Uint8Array): ByteSource {
  return {
    size: bytes.length,
    read: (at, into) => into.set(bytes.subarray(at, at + into.length)),
    close: () => {},
  };
}

// A file that nobody closed.
const forgotten = new FinalizationRegistry<number>((descriptor) => closeSync(descriptor));

/** An open file; renaming or deleting it changes nothing. Throws FormatError unless it is a regular one, the system's own errors. */
export class FileSource implements ByteSource {
  readonly size: number;
  readonly #path: string;
  #descriptor: number | undefined;

  constructor(path: string) {
    this.#path = path;
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK); // a pipe would wait for its writer
    this.#descriptor = descriptor;
    forgotten.register(this, descriptor, this);
    const status = fstatSync(descriptor);
    this.size = status.size;
    if (status.isFile()) return;
    this.close();
    throw new FormatError(`[safetensors] ${path} is not a regular file`, { path });
  }
  read(at: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const got = readSync(this.#descriptor!, into, done, into.length - done, at + done);
      if (got === 0) this.#shortened();
      done += got;
    }
  }
  map(begin: number, end: number): ArrayBuffer | undefined {
    let mapped: Uint8Array<ArrayBuffer>;
    try {
      mapped = Bun.mmap(`${DESCRIPTORS}/${this.#descriptor!}`, {
        shared: false,
        offset: begin,
        size: end - begin,
      });
    } catch {
      return undefined; // past an ArrayBuffer's 4 GiB, no room for a mapping, or a system or file system that has none
    }
    const { buffer, byteLength } = mapped;
    if (byteLength === end - begin) return buffer;
    buffer.transfer(0); // unmaps
    return this.#shortened();
  }
  close(): void {
    if (this.#descriptor === undefined) return;
    forgotten.unregister(this);
    closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }
  #shortened(): never {
    const { size } = fstatSync(this.#descriptor!);
    throw new FormatError(
      `[safetensors] ${this.#path} has ${size} bytes now and had ${this.size} when it was opened; write a new file and rename it over the old one instead`,
      { path: this.#path, bytes: size, before: this.size },
    );
  }
}
