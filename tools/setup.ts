// Installs from bun.lock when this clone's node_modules are missing or older than the lock file. Runs before every command of the
// README, so it uses nothing that an install brings.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const lock = join(root, "bun.lock");
const stamp = join(root, "node_modules", ".heed-installed");

if (!existsSync(lock)) {
  // --frozen-lockfile would take a missing lock file for an empty one.
  console.error(
    "bun.lock is missing: this clone is incomplete; restore the file with `git checkout bun.lock`",
  );
  process.exit(1);
}
const wanted = `${Bun.version} ${createHash("sha256").update(readFileSync(lock)).digest("hex")}`;
const installed = existsSync(stamp) ? readFileSync(stamp, "utf8") : "";
if (installed !== wanted) {
  console.error("Installing dependencies from bun.lock ...");
  const { exitCode } = Bun.spawnSync([process.execPath, "install", "--frozen-lockfile", "--ignore-scripts"], {
    cwd: root,
    stdio: ["ignore", "ignore", "inherit"],
  });
  if (exitCode !== 0) {
    console.error("The installation failed; the message above says why. Nothing else was changed.");
    process.exit(1);
  }
  writeFileSync(stamp, wanted);
}
