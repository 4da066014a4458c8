/**
 * `count` float32 values, uniform in [-1, 1), the same for the same seed: both sides of a comparison get the same data.
 * A multiplicative generator modulo 2^32 (Mulberry32), good enough to keep values apart and denormals away.
 */
export function uniform(count: number, seed: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(count);
  let state = seed | 0;
  for (let i = 0; i < count; i++) {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    values[i] = ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 31 - 1;
  }
  return values;
}
