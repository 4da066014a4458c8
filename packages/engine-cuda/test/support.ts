import { existsSync } from "node:fs";
import { prebuilt } from "../src/native.ts";

/** Why tests on the emulated device cannot run here; where its library comes with the package, one that does not load fails them. */
export const emulatedMissing: string | undefined = existsSync(prebuilt("emulated"))
  ? undefined
  : `no library for ${process.platform}-${process.arch} comes with this package`;
