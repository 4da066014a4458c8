import { STRUCTS } from "@heed/tensor/native";
import { describe, expect, test } from "bun:test";
import { emulatedMissing } from "./support.ts";
import { loadNative } from "../src/native.ts";
import { RUNTIME_STRUCTS } from "../src/structs.ts";

describe.skipIf(emulatedMissing !== undefined)("parameter blocks of the emulated library", () => {
  for (const [name, { bytes, fields }] of Object.entries({ ...STRUCTS, ...RUNTIME_STRUCTS })) {
    test(`${name} lies as the library has it`, () => {
      const ours = [bytes, ...Object.entries(fields).map(([field, at]) => `${field}=${at}`)].join(";");
      expect(ours).toBe(loadNative("emulated").layout(name));
    });
  }
});
