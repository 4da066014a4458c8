import { line, type Panel, picture, poolArea, type Scales } from "../trace/chart.ts";
import type { Sample } from "./samples.ts";

const POINTS = 400; // of the pool's areas: two pixels each
const SPANS = 60; // over which rates are averaged

/** About `most` of the values, evenly spread, the last one among them. */
function thinned<T>(values: readonly T[], most: number): T[] {
  const stride = Math.max(1, Math.ceil(values.length / most));
  return values.filter((_, i) => (values.length - 1 - i) % stride === 0);
}
type Point = readonly [time: number, value: number];

/** What happened between one sample and the next, at the time of the latter; left out where it is no number. */
function rates(samples: readonly Sample[], of: (from: Sample, to: Sample) => number): Point[] {
  const points = samples.slice(1).map((to, i): Point => [to.command, of(samples[i]!, to)]);
  return points.filter(([, value]) => !Number.isNaN(value));
}
const curve =
  (points: readonly Point[]) =>
  (scales: Scales): string =>
    line(points, scales);

/** A simulation over time as SVG: pages by what they were, prompt tokens found, pages evicted. */
export function simulationPicture(samples: readonly Sample[], pages: number, pageSize: number): string {
  const points = thinned(samples, POINTS);
  const spans = thinned(samples, SPANS);
  const axes = { xLabel: "step", last: Math.max(1, samples.at(-1)?.command ?? 1) };
  const found = rates(spans, (a, b) => (b.foundTokens - a.foundTokens) / (b.promptTokens - a.promptTokens));
  const evicted = rates(spans, (a, b) => (b.evictedPages - a.evictedPages) / (b.command - a.command));
  const panels: Panel[] = [
    {
      ...axes,
      title: `Pages of ${pageSize} tokens`,
      yLabel: `pages, of ${pages}`,
      high: pages,
      draw: (scales) => poolArea(points, 0, scales),
    },
    {
      ...axes,
      title: "Prompt tokens that were found published",
      yLabel: "of the prompts admitted",
      high: 1,
      format: (share) => `${Math.round(100 * share)} %`,
      draw: curve(found),
    },
    {
      ...axes,
      title: "Pages evicted",
      yLabel: "a step",
      high: Math.max(1, ...evicted.map(([, value]) => value)),
      format: String,
      draw: curve(evicted),
    },
  ];
  return picture("A load of chats, samples and beams on shared prompts", panels);
}
