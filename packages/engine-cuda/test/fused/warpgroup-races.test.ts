/** Attention by warpgroups with every access to shared memory followed: what a device would forgive most of the time is a fault here. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { emulatedMissing, ENGINE } from "../support.ts";

test.skipIf(emulatedMissing !== undefined || ENGINE === "cuda")(
  "attention by warpgroups has no races, and publishes what products read",
  () => {
    const file = join(import.meta.dir, "attention-warpgroup.test.ts");
    const { exitCode, stderr } = Bun.spawnSync(
      [process.execPath, "test", "--timeout", "120000", file, "-t", "by warpgroups"],
      {
        env: { ...process.env, HEED_CUDA_EMULATION_RACES: "1" },
        stdout: "ignore",
        stderr: "pipe",
      },
    );
    const tail = stderr.toString().slice(-3000);
    expect({ exitCode, tail }).toMatchObject({ exitCode: 0, tail: expect.stringMatching(/\b21 pass\b/) });
  },
  { timeout: 240_000 },
);
