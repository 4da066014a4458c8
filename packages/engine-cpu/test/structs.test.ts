import { STRUCTS } from "@heed/tensor/native";
import { describe, expect, test } from "bun:test";
import { loadNative, missing } from "../src/native.ts";

describe("parameter blocks", () => {
  const entries = Object.entries(STRUCTS);
  test.skipIf(missing !== undefined).each(entries)("%s lies as the library has it", (name, struct) => {
    const ours = [struct.bytes, ...Object.entries(struct.fields).map(([field, at]) => `${field}=${at}`)].join(
      ";",
    );
    expect(ours).toBe(loadNative().layout(name));
  });
  test.each(entries)("the fields of %s are aligned and inside it", (_, { bytes, fields }) => {
    expect(bytes % 8).toBe(0);
    for (const at of Object.values(fields)) {
      expect(at % 4).toBe(0);
      expect(at).toBeLessThan(bytes);
    }
  });
});
