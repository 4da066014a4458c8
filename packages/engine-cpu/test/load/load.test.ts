import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, PREBUILT, whyMissing } from "../../src/native.ts";
import { bun } from "../child.ts";
import { withAbiVersion, withoutSymbol } from "./elf-patch.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "heed-load-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

interface Result {
  readonly isa?: string;
  readonly code?: string;
  readonly message?: string;
}
/** What loading a file with these bytes gives, in a process of its own: a bad library may end it. */
async function load(
  name: string,
  bytes?: Uint8Array | string,
  env: Readonly<Record<string, string>> = {},
): Promise<Result> {
  const path = join(folder, name);
  if (bytes !== undefined) await Bun.write(path, bytes);
  const { text } = bun(["test/load/open.child.ts", path], { HEED_CPU_TARGET: "", ...env });
  return JSON.parse(text) as Result;
}
const original = (): Promise<Uint8Array> => Bun.file(PREBUILT).bytes();
function expectRefusal(result: Result, name: string, reason: RegExp): void {
  expect(result.code).toBe("HEED_ENGINE_LOAD");
  expect(result.message).toContain(join(folder, name));
  expect(result.message).toMatch(reason);
  expect(result.message).toContain("reinstall @heed/engine-cpu"); // what to do
}
describe.skipIf(missing !== undefined)("loading the native library", () => {
  test("a copy of it loads from elsewhere", async () => {
    expect((await load("good.so", await original())).isa).toMatch(/^v[234]$/);
  });
  test("a missing file", async () =>
    expectRefusal(await load("missing.so"), "missing.so", /there is no such file/));
  test("a folder", async () => {
    await Bun.write(join(folder, "folder.so", "x"), "");
    expectRefusal(await load("folder.so"), "folder.so", /cannot be read/);
  });
  test.each(["", "MZ this is something else", "#!/bin/sh\n"])("a file that is not ELF: %j", async (text) => {
    expectRefusal(await load("text.so", text), "text.so", /not an ELF library/);
  });
  test("an ELF header followed by garbage", async () => {
    const bytes = new Uint8Array(8192).fill(0xa5);
    bytes.set((await original()).subarray(0, 64));
    expectRefusal(await load("garbage.so", bytes), "garbage.so", /truncated|invalid|cannot/);
  });
  test.each([64, 4096, 0.1, 0.5, 0.9])("truncated to %d (bytes, or share)", async (to) => {
    const bytes = await original();
    const length = to < 1 ? Math.floor(bytes.length * to) : to;
    expectRefusal(await load("short.so", bytes.subarray(0, length)), "short.so", /truncated/);
  });
  test("a library for another processor", async () => {
    const bytes = await original();
    bytes[18] = 0xf3; // EM_RISCV
    expectRefusal(await load("other.so", bytes), "other.so", /another processor/);
  });
  test("a library of another ABI version", async () => {
    const bytes = withAbiVersion(await original(), 99);
    expectRefusal(await load("version.so", bytes), "version.so", /ABI version 99, this package needs 3/);
  });
  test("a library without one of the functions", async () => {
    const bytes = withoutSymbol(await original(), "heed_kv_append_run");
    expectRefusal(await load("symbol.so", bytes), "symbol.so", /heed_kv_append_run/);
  });
  test("HEED_CPU_TARGET chooses the instruction set, and an unknown one is refused", async () => {
    const bytes = await original();
    expect((await load("target.so", bytes, { HEED_CPU_TARGET: "v2" })).isa).toBe("v2");
    const unknown = await load("target.so", bytes, { HEED_CPU_TARGET: "v9" });
    expectRefusal(unknown, "target.so", /HEED_CPU_TARGET=v9 was refused: .*v9/);
  });
});

test("a process on musl is told why the library cannot serve it", () => {
  const maps = (loader: string): string => `7f0000000000-7f0000001000 r-xp 00000000 00:01 1 ${loader}\n`;
  expect(whyMissing(PREBUILT, maps("/lib/ld-musl-x86_64.so.1"))).toContain("musl");
  expect(whyMissing(PREBUILT, maps("/lib64/ld-linux-x86-64.so.2"))).toBeUndefined();
  expect(whyMissing("/no/such/library.so", "")).toContain("no native library for");
});
