import "@heed/engine-cpu";
import { cudaRefusal } from "@heed/engine-cuda";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  binary,
  getEngine,
  mul,
  openSafetensors,
  randn,
  scope,
  sum,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { crossEntropyVjp } from "../demo/loss.ts";
import { Decoder, type ModelConfig } from "../demo/model.ts";
import { parseOptions, UsageError } from "../demo/options.ts";
import { attentionMaps, lossChart } from "../demo/svg.ts";
import { loadCorpus, orderZeroEntropy } from "../demo/text.ts";
import { learningRate } from "../demo/train.ts";

const main = join(import.meta.dir, "../demo/main.ts");
let folder = "";
let text = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "heed-demo-"));
  text = join(folder, "text.txt");
  await Bun.write(text, "the quick brown fox jumps over the lazy dog. ".repeat(500));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function start(...options: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> {
  return Bun.spawn([process.execPath, main, ...options], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
}
async function finish(
  child: Bun.Subprocess<"ignore", "pipe", "pipe">,
): Promise<{ code: number; out: string; err: string }> {
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}
describe("the demo, as a command", () => {
  test("trains, decodes as a full forward pass does, and leaves its pictures and a model that reads back", async () => {
    const out = join(folder, "run");
    const { code, out: said, err } = await finish(start("--text", text, "--steps", "6", "--out", out));
    expect([code, err.includes("error")]).toEqual([0, false]);
    expect(said).toContain("the weights read back bit for bit");
    expect(Number(/full forward pass: (\S+)/.exec(said)![1])).toBeLessThan(1e-4);
    expect(Number(/Held-out loss: (\S+)/.exec(said)![1])).toBeLessThan(8);
    expect((await readdir(out)).toSorted()).toEqual([
      "attention.svg",
      "config.json",
      "loss.svg",
      "model.safetensors",
    ]);
    const config = (await Bun.file(join(out, "config.json")).json()) as Record<string, unknown>;
    expect([config["model_type"], config["num_key_value_heads"]]).toEqual(["llama", 2]);
    using file = openSafetensors(join(out, "model.safetensors"));
    expect(file.entries.get("model.layers.0.self_attn.k_proj.weight")!.shape).toEqual([64, 192]);
  }, 120_000);
  test("Ctrl-C leaves the last checkpoint whole", async () => {
    const out = join(folder, "stopped");
    const child = start("--text", text, "--steps", "30", "--out", out);
    const model = join(out, "model.safetensors");
    while (!(await Bun.file(model).exists()) && child.exitCode === null) await Bun.sleep(50);
    child.kill("SIGINT");
    const { code, out: said } = await finish(child);
    expect(code).toBe(130);
    expect(said).toContain("the checkpoint of step");
    using file = openSafetensors(model);
    expect(file.entries.size).toBe(3 * 9 + 2);
    expect((await readdir(out)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  }, 120_000);
  test.each([
    ["a missing file", ["--text", "/no/such/file"], "there is no such file"],
    ["a folder", ["--text", tmpdir()], "folder"],
    ["an unknown option", ["--speed", "9"], 'unknown option "--speed"'],
    ["an unknown engine", ["--engine", "abacus"], 'no engine "abacus"'],
    ["an unknown size", ["--size", "vast"], 'no size "vast"; there are full, small'],
  ])("%s gets an error that says so, and the usage", async (_, options, words) => {
    const { code, err } = await finish(start(...options));
    expect(err).toContain(words);
    expect(err).toContain("usage:");
    expect(code).toBe(2);
  });
});
/** Engines that this machine can use. */
const usable = (name: "cuda" | "cuda-emulated"): boolean => cudaRefusal(name) === undefined;
describe("the demo on device engines", () => {
  if (usable("cuda-emulated"))
    test("the small model trains and decodes on the emulated one", async () => {
      const out = join(folder, "emulated");
      const options = ["--engine", "cuda-emulated", "--size", "small", "--steps", "1", "--text", text];
      const { code, out: said } = await finish(start(...options, "--out", out));
      expect(said).toContain("Engine cuda-emulated");
      expect(said).toContain("the weights read back bit for bit");
      expect(Number(/full forward pass: (\S+)/.exec(said)![1])).toBeLessThan(1e-4);
      expect(code).toBe(0);
    }, 120_000);
  if (!usable("cuda"))
    test("a missing driver is one line that says so", async () => {
      const { code, out, err } = await finish(start("--engine", "cuda", "--text", text));
      expect([code, out, err.trimEnd().split("\n").length]).toEqual([1, "", 1]);
      expect(err).toStartWith("EngineLoadError: ");
    });
});
describe("options and text", () => {
  test("numbers are checked", () => {
    expect(() => parseOptions(["--steps", "0"])).toThrow(UsageError);
    expect(() => parseOptions(["--seed", "1.5"])).toThrow(UsageError);
    expect(() => parseOptions(["--out"])).toThrow(UsageError);
    expect(parseOptions(["--help"])).toBeUndefined();
    expect(parseOptions(["--steps", "7"])).toMatchObject({
      steps: 7,
      engine: "cpu",
      size: "full",
      text: undefined,
    });
  });
  test("an empty text and a short one are refused", async () => {
    const path = join(folder, "empty.txt");
    await Bun.write(path, "");
    expect(loadCorpus(path)).rejects.toThrow("is empty");
    await Bun.write(path, "short");
    expect(loadCorpus(path)).rejects.toThrow("5 bytes");
  });
  test("nothing held out is learnt from", async () => {
    const { train, heldOut } = await loadCorpus(text);
    expect(train.length + heldOut.length).toBe(22_500);
    expect(heldOut.length).toBe(2250);
  });
  test("the order-0 entropy of four equally frequent bytes is two bits", () => {
    expect(orderZeroEntropy(Uint8Array.of(1, 2, 3, 4, 4, 3, 2, 1))).toBe(2);
    expect(orderZeroEntropy(Uint8Array.of(7, 7))).toBe(0);
  });
  test("the learning rate warms up, peaks and falls to a tenth", () => {
    expect(learningRate(0, 100)).toBeLessThan(learningRate(4, 100));
    expect(learningRate(5, 100)).toBeCloseTo(3e-3, 6);
    expect(learningRate(100, 100)).toBeCloseTo(3e-4, 6);
  });
});
describe("the model's gradients", () => {
  const config: ModelConfig = {
    vocabSize: 256,
    hiddenSize: 16,
    intermediateSize: 24,
    numLayers: 2,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 4,
    ropeTheta: 10000,
    normEps: 1e-5,
    context: 8,
  };
  test("agree with the loss along a random direction, for every parameter", () => {
    const engine = getEngine("cpu");
    const model = new Decoder(config, engine, { seed: 3 });
    // Larger weights than a fresh model's, so that every path carries signal above float32's noise.
    for (const t of model.parameters.values()) if (t.rank > 1) binary("mul", t, 8, t);
    const tokens = tensor(
      Int32Array.from({ length: 16 }, (_, i) => (i * 37) % 256),
      [2, 8],
      { dtype: "int32", engine },
    );
    const targets = tensor(
      Int32Array.from({ length: 16 }, (_, i) => (i * 91 + 5) % 256),
      [16],
      { dtype: "int32", engine },
    );
    const loss = (): number => scope(() => crossEntropyVjp(model.vjp(tokens).logits, targets).value.data[0]!);
    const pass = model.vjp(tokens);
    const gradients = pass.backward(crossEntropyVjp(pass.logits, targets).gradient);
    expect([...gradients.keys()].toSorted()).toEqual([...model.parameters.keys()].toSorted());
    let seed = 0;
    for (const [name, weight] of model.parameters) {
      const direction = randn(weight.shape, { engine, seed: seed++ });
      const along = sum(mul(direction, gradients.get(name)! as Tensor<"float32">)).data[0]!;
      const h = 2e-3;
      const move = (by: number): void => void binary("add", weight, mul(direction, by), weight);
      move(h);
      const up = loss();
      move(-2 * h);
      const down = loss();
      move(h);
      const numeric = (up - down) / (2 * h);
      expect(Math.abs(numeric - along), name).toBeLessThan(0.02 * Math.abs(along) + 2e-3);
    }
  });
});
describe("pictures", () => {
  test("the loss chart names its levels and stays inside its frame", () => {
    const svg = lossChart([8, 5, 3], [{ label: "a < b", value: 4.5, colour: "#000" }]);
    expect(svg).toContain("a &lt; b 4.50");
    expect(svg).not.toContain("NaN");
    expect(svg.match(/<polyline/g)).toHaveLength(1);
  });
  test("the maps draw one cell for each visible pair of each head", () => {
    const probabilities = new Float32Array(9).fill(1 / 3);
    const svg = attentionMaps(
      [0, 1].map((head) => ({ layer: 0, head, probabilities })),
      ["a", " ", "<"],
    );
    expect(svg.match(/<title>/g)).toHaveLength(2 * 6);
    expect(svg).toContain("&lt; reads ␣");
    expect(svg).not.toContain("NaN");
  });
});
