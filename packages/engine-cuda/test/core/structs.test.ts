import { describe, expect, test } from "bun:test";
import { CORE_STRUCTS } from "../../src/core/structs.ts";
import { loadNative } from "../../src/native.ts";
import { emulatedMissing } from "../support.ts";

describe.skipIf(emulatedMissing !== undefined)("argument blocks of the core kernels", () => {
  for (const [name, { bytes, fields }] of Object.entries(CORE_STRUCTS)) {
    test(`${name} lies as the library has it`, () => {
      const ours = [bytes, ...Object.entries(fields).map(([field, at]) => `${field}=${at}`)].join(";");
      expect(ours).toBe(loadNative("emulated").layout(name));
    });
  }
});
