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

/** Places in a panel: across by time, up by value. */
export interface Scales {
  readonly x: (time: number) => number;
  readonly y: (value: number) => number;
}
/** A chart over time. */
export interface Panel {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  /** Values go from 0 to this, times from 0 to `last`. */
  readonly high: number;
  readonly last: number;
  /** What stands next to a value's tick; default the number, and no tick for a fraction. */
  readonly format?: (value: number) => string;
  /** What is drawn between frame and grid, as SVG. */
  readonly draw: (scales: Scales) => string;
}

function style(): string {
  const rule = (ground: 1 | 2): string =>
    STATES.map((state) => `.${state}{fill:${COLOURS[state][ground]}}`).join("") +
    `.line{fill:none;stroke-width:1.5;stroke:${COLOURS.live[ground]}}`;
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
function panelSvg({ title, xLabel, yLabel, high, last, format, draw }: Panel, n: number): string {
  const x = (time: number): number => LEFT + (WIDTH * time) / last;
  const y = (value: number): number => TOP + HEIGHT * (1 - value / high);
  const rows = ticks(0, high)
    .filter((t) => format !== undefined || Number.isInteger(t))
    .map(
      (t) =>
        `<line class="grid" x1="${LEFT}" x2="${LEFT + WIDTH}" y1="${y(t)}" y2="${y(t)}"/><text class="quiet" x="${LEFT - 8}" y="${y(t)}" dy=".35em" text-anchor="end" font-size="12">${format?.(t) ?? t}</text>`,
    );
  const columns = ticks(0, last)
    .filter(Number.isInteger)
    .map(
      (t) =>
        `<text class="quiet" x="${x(t)}" y="${TOP + HEIGHT + 18}" text-anchor="middle" font-size="12">${t}</text>`,
    );
  const labels = `<text x="${LEFT}" y="${TOP - 12}" font-size="13" font-weight="600">${escape(title)}</text><text class="quiet" x="${LEFT + WIDTH / 2}" y="${TOP + HEIGHT + 38}" text-anchor="middle" font-size="12">${xLabel}</text><text class="quiet" transform="translate(20 ${TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle" font-size="12">${escape(yLabel)}</text>`;
  const frame = `<rect class="frame" x="${LEFT}" y="${TOP}" width="${WIDTH}" height="${HEIGHT}"/>`;
  return `<g transform="translate(0 ${n * PITCH})">${draw({ x, y })}${rows.join("")}${columns.join("")}${frame}${labels}</g>`;
}
const point = (x: number, y: number): string => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** The pages of group `n` by what they were, one state on the other: stairs, since a count holds until the next sample. */
export function poolArea(samples: readonly Sample[], n: number, { x, y }: Scales): string {
  const edge = (i: number): number => x(i === 0 ? 0 : samples[i - 1]!.command);
  const stairs = (values: readonly number[]): string[] =>
    values.flatMap((v, i) => [point(edge(i), y(v)), point(edge(i + 1), y(v))]);
  if (samples.length === 0) return "";
  let low = samples.map(() => 0);
  return STATES.map((state) => {
    const high = samples.map((s, i) => low[i]! + s.groups[n]![state]);
    const path = `<path class="${state}" d="M${stairs(high).join("L")}L${stairs(low).reverse().join("L")}Z"/>`;
    low = high;
    return path;
  }).join("");
}
/** Values at times as a line. */
export function line(points: readonly (readonly [time: number, value: number])[], { x, y }: Scales): string {
  if (points.length === 0) return "";
  return `<path class="line" d="M${points.map(([t, v]) => point(x(t), y(v))).join("L")}"/>`;
}
/** Panels, one below the other, under a title and the legend of the pages' states; light or dark as the viewer prefers. */
export function picture(title: string, panels: readonly Panel[]): string {
  const [width, height] = [LEFT + WIDTH + 32, TOP + panels.length * PITCH - 24];
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif">`;
  const name = `<text x="${LEFT}" y="28" font-size="16" font-weight="600">${escape(title)}</text>`;
  const body = panels.map(panelSvg).join("");
  return `${head}<title>${escape(title)}</title>${style()}<rect class="ground" width="100%" height="100%"/>${name}${legend()}${body}</svg>\n`;
}
