/**
 * The 64-bit xxHash3 of some bytes (Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). A seed is 32 bits wide: of a
 * wider one Bun takes the low half. It notices damage, not forgery.
 */
export function checksum(bytes: Uint8Array, seed = 0): bigint {
  return Bun.hash.xxHash3(bytes, BigInt(seed >>> 0));
}
/**
 * The seed for the `index`-th page behind a header with this checksum, so that a page in another's place, or from another file, does not
 * pass.
 */
export function pageSeed(header: bigint, index: number): number {
  return (Number(header & 0xffffffffn) + index) >>> 0;
}
