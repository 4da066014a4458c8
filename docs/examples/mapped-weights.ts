// Weights mapped from a checkpoint's files: no copy, no wait, and memory that processes with the same files share.
import "./engine.ts";
import { attentionConfigFromHF, GroupedQueryAttention, loadAttention } from "@heed/attention";
import { cast, memoryUsage, randn, type Tensor, writeSafetensors } from "@heed/tensor";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

// A folder as Hugging Face lays one out, with one layer in bfloat16.
const config = {
  model_type: "llama",
  hidden_size: 256,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  num_hidden_layers: 1,
};
const folder = await mkdtemp(join(tmpdir(), "heed-example-"));
const made = attentionConfigFromHF(config, 0);
if (made.operation !== "GroupedQueryAttention") throw new Error("a Llama layer is one");
using layer = GroupedQueryAttention.create(made.options);
const weights = [...layer.parameters].map(([name, t]): [string, Tensor] => [
  `model.layers.0.self_attn.${name}`,
  cast(t, "bfloat16"),
]);
await writeSafetensors(join(folder, "model.safetensors"), new Map(weights));
await Bun.write(join(folder, "config.json"), JSON.stringify(config));

const before = memoryUsage();
using copied = loadAttention(folder, 0);
const between = memoryUsage();
using mapped = loadAttention(folder, 0, { map: true });
const after = memoryUsage();
console.log("copied:", between.bytes - before.bytes, "bytes allocated");
console.log("mapped:", after.bytes - between.bytes, "allocated,", after.mappedBytes, "of the file");
for (const [name, { storage }] of mapped.parameters) if (!storage.isMapped) console.log(name, "was copied");

// Files that are deleted or renamed over stay readable; one that is shortened in place would end the process.
await rm(folder, { recursive: true });
using x = randn([1, 5, 256], { seed: 1 });
using a = copied.forward(x);
using b = mapped.forward(x);
console.log("same bits", (await a.read()).join() === (await b.read()).join());
