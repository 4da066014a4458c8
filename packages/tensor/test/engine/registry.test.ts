import {
  add,
  attention,
  concat,
  DeviceError,
  type Engine,
  engineNames,
  getEngine,
  linear,
  matmul,
  ones,
  registerEngine,
  rmsNorm,
  scope,
  setDefaultEngine,
  toEngine,
} from "@heed/tensor";
import { expect, test } from "bun:test";
import { fakeEngine } from "./fake.ts";

test("an engine is created when it is first asked for, and once", () => {
  let created = 0;
  registerEngine("lazy", () => {
    created++;
    return fakeEngine({}, "lazy");
  });
  expect(created).toBe(0);
  expect(engineNames()).toContain("lazy");
  expect(getEngine("lazy")).toBe(getEngine("lazy"));
  expect(created).toBe(1);
});
test("registering a name again replaces it for later look-ups", () => {
  registerEngine("twice", () => fakeEngine({}, "one"));
  const first = getEngine("twice");
  registerEngine("twice", () => fakeEngine({}, "two"));
  expect(first.name).toBe("one");
  expect(getEngine("twice").name).toBe("two");
});
test("a name that nobody registered is a DeviceError that lists the names", () => {
  expect(() => getEngine("abacus")).toThrow(DeviceError);
  expect(() => getEngine("abacus")).toThrow("portable");
  expect(() => ones([1], { engine: "abacus" })).toThrow(DeviceError);
  expect(() => setDefaultEngine("abacus")).toThrow(DeviceError);
});
test("an engine that cannot be created throws its reason each time and is never the default", () => {
  const before = getEngine().name;
  registerEngine("broken", () => {
    throw new DeviceError("no device");
  });
  expect(() => getEngine("broken")).toThrow("no device");
  expect(() => setDefaultEngine("broken")).toThrow("no device");
  expect(getEngine().name).toBe(before);
});
test("the default engine is the one that was set", () => {
  const before = getEngine().name;
  try {
    setDefaultEngine("portable");
    using t = ones([1]);
    expect(t.engine.name).toBe("portable");
  } finally {
    setDefaultEngine(before);
  }
});
test("operands on two engines are a DeviceError that names both", () => {
  scope(() => {
    const here = ones([1, 2, 2, 4], { engine: "portable" });
    const there = ones([1, 2, 2, 4], { engine: fakeEngine({}, "elsewhere") });
    const uses: (() => unknown)[] = [
      () => add(here, there),
      () => matmul(here, there),
      () => concat([here, there]),
      () => attention(here, there, here),
      () => attention(here, here, here, { attnMask: there }),
      () => rmsNorm(here, there.select(0, 0).select(0, 0).select(0, 0)),
      () => linear(here, there.select(0, 0).select(0, 0)),
    ];
    for (const use of uses) {
      expect(use).toThrow(DeviceError);
      expect(use).toThrow('"elsewhere"');
    }
  });
});
test("toEngine copies the elements of any view, and is a second handle at home", async () => {
  const elsewhere: Engine = fakeEngine({}, "elsewhere");
  using x = ones([2, 3], { engine: "portable", dtype: "bfloat16" });
  using turned = x.transpose();
  using moved = await toEngine(turned, elsewhere);
  expect(moved.engine).toBe(elsewhere);
  expect(moved.shape).toEqual([3, 2]);
  expect(moved.dtype).toBe("bfloat16");
  using same = await toEngine(x, "portable");
  expect(same.storage).toBe(x.storage);
});
test("without any engine the error says what to import", () => {
  const source = `import { zeros } from "@heed/tensor"; try { zeros([1]); } catch (e) { console.log(e.code, e.message); }`;
  const { stdout } = Bun.spawnSync([process.execPath, "-e", source], { cwd: import.meta.dir });
  expect(stdout.toString()).toContain(
    'HEED_DEVICE [engine] no engine is registered; import "@heed/engine-cpu"',
  );
});
test.each([
  ['add("device", no); add("host"); add("other");', "host"],
  ['add("host"); add("device", no);', "host"],
  ['add("device", no); add("other", no);', "device"],
])("the default: %s", (registrations, expected) => {
  const source = `
    import { getEngine, registerEngine } from "@heed/tensor";
    const no = { isDefault: false };
    const add = (name, options) => registerEngine(name, () => ({ name }), options);
    ${registrations}
    console.log(getEngine().name);`;
  const { stdout } = Bun.spawnSync([process.execPath, "-e", source], { cwd: import.meta.dir });
  expect(stdout.toString().trim()).toBe(expected);
});
