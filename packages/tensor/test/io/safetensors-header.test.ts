import "../engines.ts";
import { FormatError, HeedError, SafetensorsFile } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { fileOf, fileOfBytes } from "./files.ts";

const open = (bytes: Uint8Array, name: string): SafetensorsFile => new SafetensorsFile(bytes, name);
const text = (s: string): Uint8Array => new TextEncoder().encode(s);
const lengthOf = (n: bigint, rest: ArrayLike<number> = []): Uint8Array => {
  const bytes = new Uint8Array(8 + rest.length);
  new DataView(bytes.buffer).setBigUint64(0, n, true);
  bytes.set(rest, 8);
  return bytes;
};
const entry = (dtype: unknown, shape: unknown, data_offsets: unknown): unknown => ({
  dtype,
  shape,
  data_offsets,
});
const one = (value: unknown, data: ArrayLike<number> = new Uint8Array(4)): Uint8Array =>
  fileOf({ x: value }, data);
const F32 = (from: number, to: number): unknown => entry("F32", [1], [from, to]);

/** Files that are not what they claim to be, with a part of the reason given. */
const corrupt: Readonly<Record<string, readonly [Uint8Array, string]>> = {
  "no bytes": [new Uint8Array(0), "has 0 bytes"],
  "seven bytes": [new Uint8Array(7), "has 7 bytes"],
  "a header of length 0": [lengthOf(0n), "does not start with {"],
  "a header longer than the file": [lengthOf(100n, text("{}")), "ends at byte 108, but the file has 10"],
  "a header of 2^64 - 1 bytes": [lengthOf(2n ** 64n - 1n, text("{}")), "at most 100000000"],
  "a header of 2^63 bytes": [lengthOf(2n ** 63n, text("{}")), "at most"],
  "a header just over the limit": [lengthOf(100_000_001n, text("{}")), "at most"],
  "something else, a zip say": [text("PK\u0003\u0004 and then some more of it"), "at most"],
  "a header that starts with a space": [fileOf(" {}"), "does not start with {"],
  "a header that is a list": [fileOf("[]"), "does not start with {"],
  "a header that is null": [fileOf("null"), "does not start with {"],
  "a header that breaks off": [fileOf('{"x":'), "not valid JSON"],
  "two headers": [fileOf("{}{}"), "not valid JSON"],
  "a header padded with zeros": [fileOfBytes(Uint8Array.of(0x7b, 0x7d, 0, 0)), "not valid JSON"],
  "a header that is not UTF-8": [
    fileOfBytes(Uint8Array.of(0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d)),
    "not valid JSON in UTF-8",
  ],
  "a name that is not UTF-8": [
    fileOfBytes(
      Uint8Array.from('{"\xff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', (c) => c.charCodeAt(0)),
    ),
    "not valid JSON in UTF-8",
  ],
  "a header with a byte order mark": [fileOf("\ufeff{}"), "does not start with {"],
  "a header with a comma too many": [fileOf('{"x":1,}'), "not valid JSON"],
  "a tensor named twice": [
    fileOf(
      '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      [1],
    ),
    'names "x" twice',
  ],
  "a tensor named twice, once by escapes": [
    fileOf(
      '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0078" :{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      [1],
    ),
    'names "x" twice',
  ],
  "a field given twice": [
    fileOf('{"x":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', [1]),
    'names "dtype" twice',
  ],
  "a tensor that is a number": [one(3), "not an object"],
  "a tensor that is null": [one(null), "not an object"],
  "a tensor that is a list": [one([]), "not an object"],
  "a tensor without a dtype": [one(entry(undefined, [1], [0, 4])), "unknown dtype"],
  "an unknown dtype": [one(entry("F31", [1], [0, 4])), 'unknown dtype "F31"'],
  "a dtype that objects have by nature": [one(entry("toString", [1], [0, 4])), "unknown dtype"],
  "a dtype that is a number": [one(entry(32, [1], [0, 4])), "unknown dtype"],
  "a shape that is a number": [one(entry("F32", 1, [0, 4])), "the shape 1"],
  "a shape with a negative length": [one(entry("F32", [-1], [0, 4])), "the shape [-1]"],
  "a shape with a fraction": [one(entry("F32", [0.5], [0, 4])), "the shape [0.5]"],
  "a shape with a string": [one(entry("F32", ["1"], [0, 4])), 'the shape ["1"]'],
  "a shape with a length past 2^53": [one(entry("F32", [2 ** 60], [0, 4])), "the shape"],
  "a shape whose size overflows": [one(entry("F32", [2 ** 52, 2 ** 52, 2 ** 52], [0, 4])), "4 bytes"],
  "a shape whose size overflows 64 bits to 0": [one(entry("F32", [2 ** 32, 2 ** 32], [0, 0]), []), "0 bytes"],
  "no offsets": [one(entry("F32", [1], undefined)), "the offsets undefined"],
  "one offset": [one(entry("F32", [1], [0])), "the offsets [0]"],
  "three offsets": [one(entry("F32", [1], [0, 4, 4])), "the offsets [0,4,4]"],
  "negative offsets": [one(entry("F32", [1], [-4, 0])), "the offsets [-4,0]"],
  "fractional offsets": [one(entry("F32", [1], [0.5, 4.5])), "the offsets"],
  "reversed offsets": [one(entry("F32", [1], [4, 0])), "4..0"],
  "offsets past the data": [one(F32(4, 8)), "4..8 of 4 bytes"],
  "offsets of another size than the shape": [one(entry("F32", [2], [0, 4])), "F32[2] takes 8"],
  "a scalar of no bytes": [one(entry("F32", [], [0, 0]), []), "takes 4"],
  "an empty tensor with bytes": [one(entry("F32", [0], [0, 4])), "takes 0"],
  "overlapping tensors": [fileOf({ x: F32(0, 4), y: F32(2, 6) }, new Uint8Array(6)), "inside another tensor"],
  "two tensors in one place": [
    fileOf({ x: F32(0, 4), y: F32(0, 4) }, new Uint8Array(4)),
    "inside another tensor",
  ],
  "a gap before the first tensor": [fileOf({ x: F32(4, 8) }, new Uint8Array(8)), "after a gap"],
  "a gap between tensors": [fileOf({ x: F32(0, 4), y: F32(8, 12) }, new Uint8Array(12)), "after a gap"],
  "bytes after the last tensor": [
    fileOf({ x: F32(0, 4) }, new Uint8Array(5)),
    "1 bytes after its last tensor",
  ],
  "bytes after no tensor": [fileOf({}, [1]), "1 bytes after"],
  "data cut off": [fileOf({ x: F32(0, 4) }, new Uint8Array(3)), "0..4 of 3 bytes"],
  "metadata that is a list": [fileOf({ __metadata__: [] }), "__metadata__"],
  "metadata that is null": [fileOf({ __metadata__: null }), "__metadata__"],
  "metadata with a number": [fileOf({ __metadata__: { a: 1 } }), "__metadata__"],
};
describe("a corrupt file is a FormatError that names it:", () => {
  for (const [name, [bytes, words]] of Object.entries(corrupt)) {
    test(name, () => {
      let thrown: unknown;
      try {
        open(bytes, "model.safetensors");
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(FormatError);
      const { code, message, details } = thrown as FormatError;
      expect(code).toBe("HEED_FORMAT");
      expect(message).toContain("[safetensors] model.safetensors ");
      expect(message).toContain(words);
      expect(details["source"]).toBe("model.safetensors");
    });
  }
});
test("the words of an error are short however long the name in it", () => {
  const long = fileOf({ ["x".repeat(1e6)]: 1 });
  expect(() => new SafetensorsFile(long, "f")).toThrow(FormatError);
  try {
    open(long, "f");
  } catch (error) {
    expect((error as Error).message.length).toBeLessThan(2000);
  }
});
test("valid files are read: none, scalar, empty and odd tensors, odd names, padding", () => {
  const none = new SafetensorsFile(fileOf({}), "f");
  expect([none.entries.size, none.metadata.size]).toEqual([0, 0]);
  const header =
    '{"__metadata__":{"a":"b"},"__proto__":{"dtype":"U8","shape":[],"data_offsets":[0,1]},' +
    '"":{"dtype":"F64","shape":[3,0],"data_offsets":[1,1]},"\\"é:":{"dtype":"I16","shape":[2],"data_offsets":[1,5]}}';
  const file = new SafetensorsFile(fileOf(header, [7, 1, 0, 2, 0], 3), "f");
  expect([...file.entries.keys()]).toEqual(["__proto__", "", '"é:']);
  expect([...file.metadata]).toEqual([["a", "b"]]);
  expect([...file.bytes("__proto__")]).toEqual([7]);
  expect([...file.bytes('"é:')]).toEqual([1, 0, 2, 0]);
  expect(file.bytes("")).toHaveLength(0);
  expect(file.has("toString")).toBe(false);
});
test("whatever bytes are flipped, dropped or added, the file is valid or a FormatError", () => {
  const valid = fileOf(
    {
      __metadata__: { format: "pt" },
      a: entry("F32", [2, 2], [0, 16]),
      b: entry("BOOL", [3], [16, 19]),
      c: entry("BF16", [0, 4], [19, 19]),
    },
    new Uint8Array(19),
  );
  const edit = fc.record({
    kind: fc.constantFrom(
      "flip" as const,
      "set" as const,
      "cut" as const,
      "insert" as const,
      "repeat" as const,
    ),
    at: fc.oneof(fc.nat({ max: 16 }), fc.nat({ max: valid.length - 1 })),
    value: fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(...text('{}[]",:0123456789-.eE \\'))),
  });
  let accepted = 0;
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
      let bytes = [...valid];
      for (const { kind, at, value } of edits) {
        const i = Math.min(at, bytes.length - 1);
        if (kind === "flip") bytes[i] = bytes[i]! ^ (1 << (value & 7));
        else if (kind === "set") bytes[i] = value;
        else if (kind === "cut") bytes = bytes.slice(0, Math.max(1, i));
        else if (kind === "insert") bytes.splice(i, 0, value);
        else bytes.splice(i, 0, ...bytes.slice(i, i + 20));
      }
      try {
        const file = new SafetensorsFile(Uint8Array.from(bytes), "f");
        for (const name of file.entries.keys()) {
          try {
            file.tensor(name, { engine: "portable" })[Symbol.dispose]();
          } catch (error) {
            if (!(error instanceof HeedError)) throw error; // a format without a dtype, a bool of 2, a rank past 8
          }
        }
        accepted++;
      } catch (error) {
        expect(error).toBeInstanceOf(FormatError);
      }
    }),
    { numRuns: 3000 },
  );
  expect(accepted).toBeGreaterThan(0); // flips in the data or in names leave a valid file
});
