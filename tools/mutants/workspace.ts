import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The repository's root. */
export const root: string = join(import.meta.dir, "../..");
/** Packages that the cache's tests need. */
const PACKAGES = ["tensor", "testkit", "engine-cpu", "kvcache"];

/**
 * A copy of the packages' sources and tests in a temporary folder, with links to what is installed. The packages' links to each other are
 * relative, so that they lead to the copies. Disposal removes it.
 */
export class Workspace {
  readonly path: string;
  constructor() {
    this.path = mkdtempSync(join(tmpdir(), "heed-mutants-"));
    try {
      for (const file of ["package.json", "bunfig.toml", "tsconfig.json"])
        cpSync(join(root, file), join(this.path, file));
      for (const name of PACKAGES) this.#copy(join("packages", name));
      this.#linkInstalled();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }
  #copy(path: string): void {
    cpSync(join(root, path), join(this.path, path), { recursive: true, verbatimSymlinks: true });
  }
  /** Installed packages by links, our own by the relative links that the installation made. */
  #linkInstalled(): void {
    const modules = "node_modules";
    mkdirSync(join(this.path, modules));
    for (const name of readdirSync(join(root, modules))) {
      if (name === "@heed") this.#copy(join(modules, name));
      else symlinkSync(join(root, modules, name), join(this.path, modules, name));
    }
  }
  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
