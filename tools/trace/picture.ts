import type { TraceHeader } from "@heed/kvcache";
import { escape, ticks } from "../demo/svg.ts";
import { type PageState, type Sample, STATES } from "./samples.ts";

/** Colours that differ in lightness too, of the set by Okabe and Ito (2008), for white and for dark ground. */
const COLOURS: Readonly<Record<PageState, readonly [name: string, light: string, dark: string]>> = {
  live: ["in use by sequences", "#0072b2", "#3d9fd6"],
  pinned: ["pinned by a match", "#d55e00", "#e8894a"],
  inFlight: ["held by a fence", "#cc79a7", "#d797ba"],
  cached: ["cached prefixes", "#009e73", "#33b894"],
  free: ["free", "#e6e6e6", "#33363b"],
};
const [LEFT, TOP, WIDTH, HEIGHT, PITCH] = [72, 92, 760, 170, 256];

function style(): string {
  const rule = (ground: 1 | 2): string =>
    STATES.map((state) => `.${state}{fill:${COLOURS[state][ground]}}`).join("");
  return `<style>
.ground{fill:#fff}text{fill:#333}.quiet{fill:#5c5c5c}.grid{stroke:#00000022}.frame{stroke:#888;fill:none}${rule(1)}
@media (prefers-color-scheme: dark){.ground{fill:#16181c}text{fill:#e4e4e4}.quiet{fill:#a9adb5}.grid{stroke:#ffffff22}.frame{stroke:#777}${rule(2)}}
</style>`;
}
function legend(): string {
  let x = LEFT;
  return STATES.map((state) => {
    const [name] = COLOURS[state];
    const at = x;
    x += 34 + 7 * name.length;
    return `<rect class="${state}" x="${at}" y="46" width="13" height="13" rx="2"/><text x="${at + 18}" y="57" font-size="12">${name}</text>`;
  }).join("");
}
/** "group 0: pages of 4 tokens, window 5, 3 sinks" */
function titleOf({ pageSize, window, sinks }: TraceHeader["groups"][number], n: number): string {
  const kept = window === null ? "all tokens kept" : `window of ${window}, ${sinks} sinks`;
  return `Group ${n}: pages of ${pageSize} tokens, ${kept}`;
}
/** The area of one state: stairs, since a count holds until the next command. */
function area(
  low: readonly number[],
  high: readonly number[],
  x: (i: number) => number,
  y: (pages: number) => number,
): string {
  const stairs = (values: readonly number[]): string[] =>
    values.flatMap((v, i) => [
      `${x(i).toFixed(1)} ${y(v).toFixed(1)}`,
      `${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`,
    ]);
  return `M${stairs(high).join("L")}L${stairs(low).reverse().join("L")}Z`;
}
function panel(samples: readonly Sample[], group: TraceHeader["groups"][number], n: number): string {
  const { maxPages } = group;
  const last = samples.at(-1)?.command ?? 1;
  const x = (i: number): number => LEFT + (WIDTH * (i === 0 ? 0 : samples[i - 1]!.command)) / last;
  const y = (pages: number): number => TOP + HEIGHT * (1 - pages / maxPages);
  let low = samples.map(() => 0);
  const areas = STATES.map((state) => {
    const high = samples.map((s, i) => low[i]! + s.groups[n]![state]);
    const path = `<path class="${state}" d="${area(low, high, x, y)}"/>`;
    low = high;
    return samples.length === 0 ? "" : path;
  });
  const rows = ticks(0, maxPages)
    .filter(Number.isInteger)
    .map(
      (t) =>
        `<line class="grid" x1="${LEFT}" x2="${LEFT + WIDTH}" y1="${y(t)}" y2="${y(t)}"/><text class="quiet" x="${LEFT - 8}" y="${y(t)}" dy=".35em" text-anchor="end" font-size="12">${t}</text>`,
    );
  const columns = ticks(0, last)
    .filter(Number.isInteger)
    .map(
      (t) =>
        `<text class="quiet" x="${LEFT + (WIDTH * t) / last}" y="${TOP + HEIGHT + 18}" text-anchor="middle" font-size="12">${t}</text>`,
    );
  const labels = `<text x="${LEFT}" y="${TOP - 12}" font-size="13" font-weight="600">${escape(titleOf(group, n))}</text><text class="quiet" x="${LEFT + WIDTH / 2}" y="${TOP + HEIGHT + 38}" text-anchor="middle" font-size="12">command</text><text class="quiet" transform="translate(20 ${TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle" font-size="12">pages, of ${maxPages}</text>`;
  const frame = `<rect class="frame" x="${LEFT}" y="${TOP}" width="${WIDTH}" height="${HEIGHT}"/>`;
  return `<g transform="translate(0 ${n * PITCH})">${areas.join("")}${rows.join("")}${columns.join("")}${frame}${labels}</g>`;
}
/** The pools over a trace as SVG, a panel for each group; light or dark as the viewer prefers. */
export function poolPicture({ groups }: TraceHeader, samples: readonly Sample[], title: string): string {
  const [width, height] = [LEFT + WIDTH + 32, TOP + groups.length * PITCH - 24];
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif">`;
  const name = `<text x="${LEFT}" y="28" font-size="16" font-weight="600">${escape(title)}</text>`;
  const panels = groups.map((group, n) => panel(samples, group, n)).join("");
  return `${head}<title>${escape(title)}</title>${style()}<rect class="ground" width="100%" height="100%"/>${name}${legend()}${panels}</svg>\n`;
}
