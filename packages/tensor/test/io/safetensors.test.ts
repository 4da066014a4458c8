import {
  ArgumentError,
  type DType,
  DisposedError,
  DTypeError,
  FormatError,
  ones,
  openSafetensors,
  randn,
  SafetensorsFile,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  trackLeaks,
  writeSafetensors,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { engines } from "../engines.ts";
import { fileOf, temporaryFolder } from "./files.ts";

const DTYPES: DType[] = ["float64", "float32", "float16", "bfloat16", "int32", "int64", "uint8", "bool"];

const bytesOf = (x: ArrayBufferView<ArrayBuffer>): string =>
  Buffer.from(x.buffer, x.byteOffset, x.byteLength).toString("hex");

describe.each([...engines])("safetensors files on %s", (engine) => {
  test("tensors of every dtype, scalar and empty ones, and metadata come back as they were", async () => {
    using folder = temporaryFolder();
    const path = folder.path("all.safetensors");
    const tensors = new Map<string, Tensor>();
    for (const dtype of DTYPES) {
      tensors.set(`${dtype}.list`, tensor([0, 1, 1, 0, 1, 0], [2, 3], { engine, dtype }));
      tensors.set(`${dtype}.scalar`, ones([], { engine, dtype }));
      tensors.set(`${dtype}.empty`, zeros([0, 3], { engine, dtype }));
    }
    tensors.set(
      "special",
      tensor([NaN, -0, Infinity, -Infinity, 5e-324], undefined, { engine, dtype: "float64" }),
    );
    tensors.set('odd "name"\n\u{1f600}', ones([1], { engine }));
    await writeSafetensors(path, tensors, { format: "pt", "": "ü" });
    using file = openSafetensors(path);
    expect([...file.entries.keys()].toSorted()).toEqual([...tensors.keys()].toSorted());
    expect([...file.metadata]).toEqual([
      ["format", "pt"],
      ["", "ü"],
    ]);
    for (const [name, was] of tensors) {
      using is = file.tensor(name, { engine });
      expect([is.dtype, is.shape, is.engine.name]).toEqual([was.dtype, was.shape as number[], engine]);
      expect(bytesOf(await is.read())).toBe(bytesOf(await was.read()));
    }
  });
  test("a view is written row-major, and a plain object names tensors too", async () => {
    using folder = temporaryFolder();
    const path = folder.path("view.safetensors");
    using x = tensor(
      [
        [1, 2],
        [3, 4],
      ],
      undefined,
      { engine },
    );
    using turned = x.transpose();
    await writeSafetensors(path, { turned });
    using file = openSafetensors(path);
    using back = file.tensor("turned", { engine });
    expect([...toFloat64(back)]).toEqual([1, 3, 2, 4]);
  });
  test("data at any alignment is read", () => {
    for (let padding = 0; padding < 8; padding++) {
      const data = new Uint8Array(Float64Array.of(1.5, -2).buffer);
      const header = { x: { dtype: "F64", shape: [2], data_offsets: [0, 16] } };
      using x = new SafetensorsFile(fileOf(header, data, padding), "f").tensor("x", { engine });
      expect([...toFloat64(x)]).toEqual([1.5, -2]);
    }
  });
  test("a tensor is a copy: it outlives the file, and the file's bytes do not change with it", () => {
    const bytes = fileOf({ x: { dtype: "U8", shape: [1], data_offsets: [0, 1] } }, [5]);
    const file = new SafetensorsFile(bytes, "f");
    using x = file.tensor("x", { engine });
    (x.data as Uint8Array)[0] = 9;
    expect([...file.bytes("x")]).toEqual([5]);
    file[Symbol.dispose]();
    expect([...toFloat64(x)]).toEqual([9]);
  });
});
test("formats that have no dtype here are listed, given as bytes, and refused as tensors", () => {
  const file = new SafetensorsFile(
    fileOf({ x: { dtype: "F8_E4M3", shape: [2], data_offsets: [0, 2] } }, [1, 2]),
    "f",
  );
  expect(file.entries.get("x")!.format).toBe("F8_E4M3");
  expect([...file.bytes("x")]).toEqual([1, 2]);
  expect(() => file.tensor("x", { engine: "portable" })).toThrow(DTypeError);
});
test("a bool of 2 is a FormatError, a rank past 8 a ShapeError", () => {
  const bool = new SafetensorsFile(
    fileOf({ x: { dtype: "BOOL", shape: [2], data_offsets: [0, 2] } }, [1, 2]),
    "f",
  );
  expect(() => bool.tensor("x", { engine: "portable" })).toThrow(FormatError);
  const shape = [1, 1, 1, 1, 1, 1, 1, 1, 1];
  const deep = new SafetensorsFile(fileOf({ x: { dtype: "U8", shape, data_offsets: [0, 1] } }, [1]), "f");
  expect(() => deep.tensor("x", { engine: "portable" })).toThrow(ShapeError);
});
test("a name that the file lacks is an ArgumentError that lists those it has", () => {
  const file = new SafetensorsFile(fileOf({ x: { dtype: "U8", shape: [0], data_offsets: [0, 0] } }), "f");
  expect(() => file.tensor("y", { engine: "portable" })).toThrow('no tensor "y"; it has x');
  expect(() => file.bytes("__metadata__")).toThrow(ArgumentError);
});
test("use after dispose is a DisposedError", () => {
  const file = new SafetensorsFile(fileOf({ x: { dtype: "U8", shape: [0], data_offsets: [0, 0] } }), "f");
  file[Symbol.dispose]();
  file[Symbol.dispose]();
  expect(() => file.tensor("x", { engine: "portable" })).toThrow(DisposedError);
});
describe("opening", () => {
  test("a folder, a pipe, a short and an empty file are FormatErrors", () => {
    using folder = temporaryFolder();
    mkdirSync(folder.path("folder"));
    writeFileSync(folder.path("empty"), "");
    writeFileSync(folder.path("short"), "1234567");
    const paths = ["folder", "empty", "short"];
    if (Bun.which("mkfifo") !== null && Bun.spawnSync(["mkfifo", folder.path("pipe")]).success)
      paths.push("pipe");
    for (const name of paths) expect(() => openSafetensors(folder.path(name))).toThrow(FormatError);
  });
  test("a missing file is the system's own error, with its code", () => {
    using folder = temporaryFolder();
    let thrown: unknown;
    try {
      openSafetensors(folder.path("missing"));
    } catch (error) {
      thrown = error;
    }
    expect((thrown as NodeJS.ErrnoException).code).toBe("ENOENT");
  });
  test("a corrupt file on disk is a FormatError that names its path", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.path("bad"), fileOf({}, [1]));
    expect(() => openSafetensors(folder.path("bad"))).toThrow(folder.path("bad"));
  });
  test("a link to a file is followed", async () => {
    using folder = temporaryFolder();
    using x = ones([1], { engine: "portable" });
    await writeSafetensors(folder.path("real"), { x });
    symlinkSync(folder.path("real"), folder.path("link"));
    using file = openSafetensors(folder.path("link"));
    expect(file.has("x")).toBe(true);
  });
});
describe("writing", () => {
  test("data starts at a multiple of 8 and every tensor at a multiple of its element", async () => {
    using folder = temporaryFolder();
    const path = folder.path("aligned");
    const tensors = scope(() =>
      DTYPES.map((dtype) => [dtype, ones([3], { engine: "portable", dtype })] as const),
    );
    await writeSafetensors(path, new Map<string, Tensor>(tensors));
    using file = openSafetensors(path);
    for (const [name, t] of tensors) {
      expect(file.entries.get(name)!.begin % (await t.read()).BYTES_PER_ELEMENT).toBe(0);
      t[Symbol.dispose]();
    }
  });
  test("the same tensors give the same bytes, whatever their order", async () => {
    using folder = temporaryFolder();
    using a = randn([3], { engine: "portable" });
    using b = ones([2], { engine: "portable", dtype: "float16" });
    await writeSafetensors(folder.path("one"), { a, b });
    await writeSafetensors(folder.path("two"), { b, a });
    expect(readFileSync(folder.path("one"))).toEqual(readFileSync(folder.path("two")));
  });
  test("no tensors make a valid file", async () => {
    using folder = temporaryFolder();
    await writeSafetensors(folder.path("none"), {});
    expect(openSafetensors(folder.path("none")).entries.size).toBe(0);
  });
  test("a failure on the way leaves the old file, and no other", async () => {
    using folder = temporaryFolder();
    using good = ones([4], { engine: "portable" });
    await writeSafetensors(folder.path("model"), { good });
    const before = readFileSync(folder.path("model"));
    const gone = ones([4], { engine: "portable" });
    gone[Symbol.dispose]();
    const late = ones([4], { engine: "portable", dtype: "float16" }); // written after `good`
    const read = late.read.bind(late);
    late.read = async () => {
      await read();
      throw new RangeError("device lost");
    };
    expect(writeSafetensors(folder.path("model"), { good, gone })).rejects.toBeInstanceOf(DisposedError);
    await writeSafetensors(folder.path("model"), { good, late }).then(
      () => expect.unreachable(),
      (error: unknown) => expect(error).toBeInstanceOf(RangeError),
    );
    expect(readFileSync(folder.path("model"))).toEqual(before);
    expect(readdirSync(folder.path("."))).toEqual(["model"]);
  });
  test("a folder that is not there, or stands in the way, is the system's error and leaves nothing", async () => {
    using folder = temporaryFolder();
    using x = ones([4], { engine: "portable" });
    mkdirSync(folder.path("taken"));
    await expect(writeSafetensors(folder.path("no/where"), { x })).rejects.toHaveProperty("code", "ENOENT");
    await expect(writeSafetensors(folder.path("taken"), { x })).rejects.toHaveProperty("code");
    expect(readdirSync(folder.path("."))).toEqual(["taken"]);
    expect(existsSync(folder.path("no"))).toBe(false);
  });
  test("names and metadata that a file cannot hold are ArgumentErrors", async () => {
    using folder = temporaryFolder();
    using x = ones([4], { engine: "portable" });
    await expect(writeSafetensors(folder.path("f"), new Map([["__metadata__", x]]))).rejects.toBeInstanceOf(
      ArgumentError,
    );
    await expect(writeSafetensors(folder.path("f"), { x }, { n: 1 as never })).rejects.toBeInstanceOf(
      ArgumentError,
    );
    expect(existsSync(folder.path("f"))).toBe(false);
  });
  test("reading and writing leave no tensor behind", async () => {
    using folder = temporaryFolder();
    using x = ones([4], { engine: "portable" }).transpose(0, 0);
    using tracker = trackLeaks();
    await writeSafetensors(folder.path("f"), { x });
    using file = openSafetensors(folder.path("f"));
    file.tensor("x", { engine: "portable" })[Symbol.dispose]();
    expect(tracker.report()).toEqual([]);
  });
});
