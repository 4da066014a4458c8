/**
 * The engine that an example runs on: `bun docs/examples/attention.ts --engine cuda`, the CPU's unless told otherwise. A program of your
 * own imports "@heed/engine-cpu" or "@heed/engine-cuda" instead, and names a default where it wants another than the first.
 */
import "@heed/engine-cpu";
import "@heed/engine-cuda";
import { HeedError, setDefaultEngine } from "@heed/tensor";

const at = process.argv.indexOf("--engine");
if (at >= 0) {
  try {
    setDefaultEngine(process.argv[at + 1] ?? "");
  } catch (error) {
    if (!(error instanceof HeedError)) throw error;
    console.error(`${error.name}: ${error.message}`); // no such engine, or no driver
    process.exit(1);
  }
}
