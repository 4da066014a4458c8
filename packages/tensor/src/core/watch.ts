import type { Tensor } from "./tensor.ts";

let watcher: ((read: Tensor) => void) | undefined;

/** Has `watch` called whenever elements are looked at on the host, through `data`; undefined ends that. For tapes. */
export function watchReads(watch: ((read: Tensor) => void) | undefined): void {
  watcher = watch;
}
/** Tells the watcher, if there is one, that the elements of `t` are looked at. */
export function noteRead(t: Tensor): void {
  watcher?.(t);
}
