/** What the build writes for the compiler: tables of kernels and modules, and the fields of the parameter blocks. */
import { mkdirSync, readFileSync, writeFileSync, existsSync } from "node:fs";
import { join } from "node:path";
import { BUILD, NATIVE } from "./toolchain.ts";

/** Folder of the generated files; on the include path of the runtime. */
export const GENERATED: string = join(BUILD, "generated");

/** A compiled file of kernels. */
export interface Module {
  readonly fatbin: string;
  readonly kernels: readonly string[];
}

function write(name: string, text: string): string {
  mkdirSync(GENERATED, { recursive: true });
  const path = join(GENERATED, name);
  if (!existsSync(path) || readFileSync(path, "utf8") !== text) writeFileSync(path, text);
  return path;
}

/** kernel_table.inc: MODULE(number) lines, then KERNEL(name, module) lines sorted by name. Returns its text. */
export function kernelTable(modules: readonly Module[]): string {
  const kernels = modules.flatMap(({ kernels: names }, module) => names.map((name) => ({ name, module })));
  kernels.sort((a, b) => (a.name < b.name ? -1 : 1));
  const twice = kernels.find(({ name }, i) => kernels[i + 1]?.name === name);
  if (twice !== undefined) throw new Error(`two files define the kernel ${twice.name}`);
  const text = [
    ...modules.map((_, i) => `MODULE(${i})`),
    ...kernels.map(({ name, module }) => `KERNEL(${name}, ${module})`),
    "",
  ].join("\n");
  write("kernel_table.inc", text);
  return text;
}

/** modules.S: the modules' bytes. Returns its path. */
export function embedded(modules: readonly Module[]): string {
  const lines = modules.flatMap(({ fatbin }, i) => [
    `.globl heed_module_${i}`,
    `.hidden heed_module_${i}`,
    ".balign 64",
    `heed_module_${i}: .incbin "${fatbin}"`,
  ]);
  return write(
    "modules.S",
    [".section .rodata", ...lines, '.section .note.GNU-stack,"",@progbits', ""].join("\n"),
  );
}

/** Names of the fields of a struct's body, in order. */
function fields(body: string): string[] {
  return body
    .split(";")
    .map((declaration) => declaration.trim())
    .filter((declaration) => declaration !== "")
    .flatMap((declaration) => declaration.replace(/^(const\s+)?\w+\s*/, "").split(","))
    .map((name) => name.replace(/[*\s]|\[.*?\]/g, ""));
}
/** layout_abi.inc, layout_args.inc and layout_shared.inc: a BLOCK line for every struct of that header. Returns their text. */
export function layouts(): string {
  const of = (header: string, name: string): string => {
    const text = readFileSync(join(NATIVE, "abi", header), "utf8").replace(/\/\/.*|\/\*[\s\S]*?\*\//g, "");
    const structs = [...text.matchAll(/typedef struct \{([^}]*)\}\s*(\w+);/g)];
    const block = (struct: string, body: string): string =>
      `BLOCK(${struct}, ${fields(body)
        .map((field) => `F(${field})`)
        .join(" ")})`;
    const lines = structs.map(([, body, struct]) => block(struct!, body!)).join("\n");
    write(name, `${lines}\n`);
    return lines;
  };
  return [
    of("heed_cuda.h", "layout_abi.inc"),
    of("heed_cuda_args.h", "layout_args.inc"),
    of("../../../engine-cpu/native/abi/heed_cpu.h", "layout_shared.inc"),
  ].join("\n");
}
