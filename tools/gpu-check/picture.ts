import { escape } from "../demo/svg.ts";
import type { Measured } from "./measure.ts";
import { formatRate, type Report } from "./report.ts";

const [LEFT, TOP, WIDTH, ROW] = [300, 64, 520, 20];
/** Of the set by Okabe and Ito (2008): ours, and a peer's mark. */
const [BAR, MARK] = ["#0072b2", "#d55e00"];

function row({ name, bound, rate, share, peers, milliseconds, note }: Measured, i: number): string {
  const y = TOP + i * ROW;
  const label = `<text x="${LEFT - 8}" y="${y + 13}" text-anchor="end">${escape(name)}</text>`;
  if (rate === undefined || share === undefined || milliseconds === undefined)
    return `${label}<text class="quiet" x="${LEFT + 4}" y="${y + 13}">${escape(note ?? "not timed")}</text>`;
  const width = WIDTH * Math.min(1, share);
  const marks = Object.entries(peers).map(([peer, theirs]) => {
    const x = LEFT + WIDTH * Math.min(1, (share * milliseconds) / theirs);
    return `<line x1="${x}" x2="${x}" y1="${y + 1}" y2="${y + 17}" stroke="${MARK}" stroke-width="2"><title>${escape(peer)}</title></line>`;
  });
  return `${label}<rect x="${LEFT}" y="${y + 3}" width="${width.toFixed(1)}" height="12" fill="${BAR}"/>${marks.join("")}<text class="quiet" x="${LEFT + WIDTH + 8}" y="${y + 13}">${formatRate(bound, rate)}, ${(100 * share).toFixed(0)} %</text>`;
}
/** Speeds as bars of the device's peak, peers' as marks on them; SVG text for white and dark ground. */
export function picture({ device, engine, date, commit, speeds }: Report): string {
  const height = TOP + ROW * speeds.length + 24;
  const grid = [0, 25, 50, 75, 100].map((percent) => {
    const x = LEFT + (WIDTH * percent) / 100;
    return `<line class="grid" x1="${x}" x2="${x}" y1="${TOP - 4}" y2="${height - 20}"/><text class="quiet" x="${x}" y="${TOP - 10}" text-anchor="middle">${percent} %</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 ${height}" width="960" height="${height}" font-family="system-ui, sans-serif" font-size="12">
<style>.ground{fill:#fff}text{fill:#333}.quiet{fill:#5c5c5c}.grid{stroke:#00000022}@media (prefers-color-scheme: dark){.ground{fill:#16181c}text{fill:#e4e4e4}.quiet{fill:#a9adb5}.grid{stroke:#ffffff22}}</style>
<rect class="ground" width="100%" height="100%"/>
<text x="16" y="24" font-size="14" font-weight="600">${escape(device.name)}: share of a product's and a copy's speed (${escape(engine)}, ${escape(date.slice(0, 10))}, ${escape(commit.slice(0, 7))}); marks: peers</text>
${grid.join("")}${speeds.map(row).join("\n")}
</svg>
`;
}
