// Checks the structure that docs/architecture.md describes: which package may import which, that imports within tensor point down,
// that bun:ffi stays in one file per engine, that no two source files import each other's values, and that files stay small.
import { dirname, join, normalize } from "node:path";

/** What each package's src may import; its test may add the second list. */
const ARROWS: Readonly<
  Record<string, { readonly src: readonly string[]; readonly test: readonly string[] }>
> = {
  tensor: { src: [], test: ["engine-cpu", "engine-cuda", "testkit"] },
  "engine-cpu": { src: ["tensor"], test: ["testkit"] },
  "engine-cuda": { src: ["tensor"], test: ["engine-cpu", "testkit"] },
  attention: { src: ["tensor"], test: ["engine-cpu", "engine-cuda", "testkit", "kvcache"] },
  kvcache: { src: ["tensor"], test: ["engine-cpu", "engine-cuda", "testkit"] },
  testkit: { src: ["tensor"], test: ["engine-cpu", "engine-cuda"] },
};
/** Floors of tensor/src, lowest first. ops may name engine's types and so on, never the other way round. */
const FLOORS = ["core", "engine", "ops", "fused", "io", "native"];
const FFI_HOMES = /^packages\/engine-(cpu|cuda)\/src\/native\.ts$/;
const LIMITS: readonly (readonly [RegExp, number])[] = [
  [/\.test\.ts$/, 500],
  [/\.ts$/, 400],
  [/\.(cc|h|cu|cuh)$/, 600],
];

interface Import {
  readonly to: string;
  readonly isType: boolean;
}
/** A file's path within the project and its text. */
export interface Source {
  readonly path: string;
  readonly text: string;
}
/** What a file imports or re-exports, in order; `isType` when nothing of it is left at run time. */
export function importsOf(text: string): Import[] {
  const found = text.matchAll(
    /^(?:import|export)\s+(type\s)?[^"';]*?from\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\(\s*"([^"]+)"\s*\)/gm,
  );
  return [...found].map((m) => ({ to: (m[2] ?? m[3] ?? m[4])!, isType: m[1] !== undefined }));
}
function checkFile({ path, text }: Source): string[] {
  const bad: string[] = [];
  const limit = LIMITS.find(([kind]) => kind.test(path))?.[1] ?? Infinity;
  const lines = text.split("\n").length - 1;
  if (lines > limit) bad.push(`${path}: ${lines} lines, at most ${limit}: two rooms in one?`);
  const [, name, part] = /^packages\/([^/]+)\/(src|test)\//.exec(path) ?? [];
  if (name === undefined) return bad;
  const arrows = ARROWS[name];
  if (arrows === undefined)
    return [...bad, `${path}: package "${name}" has no line in tools/check-imports.ts`];
  const allowed = part === "test" ? [...arrows.src, ...arrows.test, name] : arrows.src;
  for (const { to, isType } of importsOf(text)) {
    const heed = /^@heed\/([^/]+)/.exec(to)?.[1];
    if (heed !== undefined && !allowed.includes(heed))
      bad.push(`${path}: ${name}/${part} may not import ${to}`);
    if (to === "bun:ffi" && !FFI_HOMES.test(path) && part === "src")
      bad.push(`${path}: bun:ffi belongs in src/native.ts`);
    if (to.startsWith(".")) bad.push(...checkRelative(path, name, join(dirname(path), to), isType));
  }
  return bad;
}
function checkRelative(path: string, name: string, target: string, isType: boolean): string[] {
  if (!target.startsWith(`packages/${name}/`))
    return [`${path}: imports ${target} by path; import the package by its name`];
  const floor = (p: string): number => FLOORS.indexOf(/^packages\/tensor\/src\/([^/]+)\//.exec(p)?.[1] ?? "");
  const up = floor(path) >= 0 && floor(target) > floor(path);
  // Types may point up: an engine names the plans that its kernels take.
  return up && !isType
    ? [`${path}: imports ${target}, which lies above it; within tensor imports point down`]
    : [];
}
/** One line per cycle of value imports among the given files. */
export function cycles(sources: readonly Source[]): string[] {
  const graph = new Map(
    sources.map(({ path, text }) => [
      path,
      importsOf(text).flatMap(({ to, isType }) =>
        to.startsWith(".") && !isType ? [normalize(join(dirname(path), to))] : [],
      ),
    ]),
  );
  const bad: string[] = [];
  const state = new Map<string, "open" | "done">();
  const visit = (file: string, trail: readonly string[]): void => {
    if (state.get(file) === "done" || !graph.has(file)) return;
    if (state.get(file) === "open") {
      bad.push(`cycle: ${[...trail.slice(trail.indexOf(file)), file].join(" -> ")}`);
      return;
    }
    state.set(file, "open");
    for (const next of graph.get(file)!) visit(next, [...trail, file]);
    state.set(file, "done");
  };
  for (const file of graph.keys()) visit(file, []);
  return bad;
}
/** Every offence against the structure, one line each; empty when there is none. */
export function checkStructure(sources: readonly Source[]): string[] {
  return [...sources.flatMap(checkFile), ...cycles(sources.filter(({ path }) => path.endsWith(".ts")))];
}
/** The project's own sources. */
export async function readSources(root: string): Promise<Source[]> {
  const glob = new Bun.Glob("{packages,tools,docs}/**/*.{ts,cc,h,cu,cuh}");
  const paths = [...glob.scanSync(root)].filter((p) => !/(^|\/)(node_modules|build|out)\//.test(p)).sort();
  return Promise.all(paths.map(async (path) => ({ path, text: await Bun.file(join(root, path)).text() })));
}

if (import.meta.main) {
  const sources = await readSources(join(import.meta.dir, ".."));
  const bad = checkStructure(sources);
  console.log(
    bad.length > 0 ? bad.join("\n") : `${sources.length} files: arrows, cycles and sizes are in order`,
  );
  process.exit(bad.length > 0 ? 1 : 0);
}
