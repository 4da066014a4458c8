import { type HostPart, LARGEST_BUFFER, type Memory } from "@heed/tensor";

/** Parts start at multiples of this many bytes and are two of them long, unless a view needs more: 64 GiB have some 250 parts. */
const GRAIN = 2 ** 28;

/** What frees memory, and what the host has been shown of it. */
interface Shown {
  /** The buffer that owns the memory, which is freed when this one is detached or collected. */
  readonly owner: ArrayBuffer;
  /** Strongly held, so that a release reaches all of them. */
  readonly parts: HostPart[];
}
// As long as the host can reach a part, by a typed array too, the collector leaves its owner alone.
const ownerOf = new WeakMap<ArrayBuffer, ArrayBuffer>();
// Owners of memory that is seen through buffers of which nothing tells us: unmapping it would end the process at the next touch.
const kept = new Set<ArrayBuffer>();
const collected = new FinalizationRegistry<Shown>((shown) => void keepIfMoved(shown));

/** Keeps the memory for good when somebody moved a part's buffer (transfer, postMessage); says whether it did. */
function keepIfMoved({ owner, parts }: Shown): boolean {
  const moved = parts.some(({ buffer }) => buffer.detached);
  if (moved) kept.add(owner);
  return moved;
}
function release(shown: Shown): void {
  const moved = keepIfMoved(shown);
  for (const { buffer } of shown.parts.splice(0)) if (!buffer.detached) buffer.transfer(0);
  if (!moved) shown.owner.transfer(0);
}
/** Where the part for `bytes` from `at` on begins in memory of `total` bytes, and how long it is. */
export function partFor(at: number, bytes: number, total: number): { start: number; length: number } {
  const start = Math.floor(Math.min(at, total - 1) / GRAIN) * GRAIN;
  const end = Math.max(start + 2 * GRAIN, Math.ceil((at + bytes) / GRAIN) * GRAIN);
  if (end - start <= LARGEST_BUFFER) return { start, length: Math.min(end, total) - start };
  return { start: at, length: bytes }; // a view of nearly 4 GiB has a part to itself
}
/** Whether a part that was made serves `bytes` from `at` on. One that was made for a single view may not be aligned for others. */
function serves({ start, buffer }: HostPart, at: number, bytes: number): boolean {
  const aligned = start % GRAIN === 0 || start === at;
  return aligned && !buffer.detached && start <= at && at + bytes <= start + buffer.byteLength;
}
/**
 * Memory of more bytes than an ArrayBuffer holds, of which the host sees parts. `owner` frees it all; `bufferAt` makes a buffer over a
 * part, which owns nothing. `release` detaches every part and frees at once; the collector frees when neither the memory nor a part of
 * it can be reached. When the buffer of a part was moved elsewhere before, the memory stays until the process ends.
 */
export function largeMemory(
  address: number,
  total: number,
  owner: ArrayBuffer,
  bufferAt: (at: number, bytes: number) => ArrayBuffer,
): Memory {
  const shown: Shown = { owner, parts: [] };
  const part = (at: number, bytes: number): HostPart => {
    const made = shown.parts.find((p) => serves(p, at, bytes));
    if (made !== undefined) return made;
    const { start, length } = partFor(at, bytes, total);
    const fresh: HostPart = { start, buffer: bufferAt(start, length) };
    ownerOf.set(fresh.buffer, owner);
    shown.parts.push(fresh);
    return fresh;
  };
  const memory: Memory = { buffer: undefined, address, part, release: () => release(shown) };
  collected.register(memory, shown);
  return memory;
}
