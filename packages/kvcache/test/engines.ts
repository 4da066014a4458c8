import { floorReason } from "@heed/engine-cpu";
import { test } from "bun:test";

/** The engines that tests run on; where no native library comes with the package, a skipped test says so. */
export const engines: readonly string[] = floorReason.startsWith("native")
  ? ["portable", "cpu"]
  : ["portable"];
if (!engines.includes("cpu")) test.skip(`engine "cpu": ${floorReason}`, () => {});
