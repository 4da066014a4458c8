/** An engine whose memory the host does not see. */
import { type DType, type DTypeArrays, DTYPES, type Engine, getEngine, type Memory } from "@heed/tensor";

/**
 * The engine "cpu" as a device: its tensors have no memory that the host could look at, and every allocation is filled with 0xff. What
 * reads values where a device would have to be waited for fails on it.
 */
export function offHostEngine(): Engine {
  const host = getEngine("cpu");
  const hidden = new Map<number, Memory>();
  const bytesAt = (address: number): Uint8Array => new Uint8Array(hidden.get(address)!.buffer!);
  const own: Pick<Engine, "name" | "device" | "alloc" | "upload" | "read"> = {
    name: "off-host",
    device: "cuda",
    alloc: (bytes) => {
      const memory = host.alloc(bytes);
      const { address } = memory;
      hidden.set(address, memory);
      bytesAt(address).fill(0xff);
      const release = (): void => {
        hidden.delete(address);
        memory.release();
      };
      return { address, buffer: undefined, release };
    },
    upload: (values, out) => {
      const from = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      bytesAt(out.storage.address).set(from, out.offset * DTYPES[out.dtype].bytes);
    },
    read: async (x, signal) => {
      signal?.throwIfAborted();
      using dense = x.contiguous();
      const { array, bytes } = DTYPES[x.dtype];
      const from = dense.size === 0 ? 0 : dense.offset * bytes;
      const { buffer } = bytesAt(dense.storage.address);
      return new array(buffer as ArrayBuffer, from, dense.size).slice() as DTypeArrays[DType];
    },
  };
  return Object.assign(Object.create(host) as Engine, own, { wrap: undefined });
}
